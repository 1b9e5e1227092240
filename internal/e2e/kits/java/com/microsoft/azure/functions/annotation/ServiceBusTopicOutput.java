package com.microsoft.azure.functions.annotation;

import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;

@Retention(RetentionPolicy.RUNTIME)
public @interface ServiceBusTopicOutput {
    String name();

    String topicName();

    String subscriptionName();

    String connection();
}
