package com.azure.core.amqp;

import java.time.Duration;

public class AmqpRetryOptions {
    public AmqpRetryOptions setMaxRetries(int numberOfRetries) {
        return this;
    }

    public AmqpRetryOptions setTryTimeout(Duration tryTimeout) {
        return this;
    }
}
