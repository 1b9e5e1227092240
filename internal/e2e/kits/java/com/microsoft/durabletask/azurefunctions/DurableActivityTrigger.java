package com.microsoft.durabletask.azurefunctions;

import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;

@Retention(RetentionPolicy.RUNTIME)
public @interface DurableActivityTrigger {
    String name();
}
