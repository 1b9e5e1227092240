package com.azure.messaging.servicebus;

import com.azure.core.amqp.AmqpRetryOptions;
import com.azure.core.credential.TokenCredential;

public final class ServiceBusClientBuilder {
    private static int made;
    private String connectionString;

    public ServiceBusClientBuilder retryOptions(AmqpRetryOptions retryOptions) {
        return this;
    }

    public ServiceBusClientBuilder connectionString(String connectionString) {
        this.connectionString = connectionString;
        return this;
    }

    public ServiceBusClientBuilder credential(String fullyQualifiedNamespace, TokenCredential credential) {
        return this;
    }

    public ServiceBusSenderClientBuilder sender() {
        return new ServiceBusSenderClientBuilder();
    }

    public final class ServiceBusSenderClientBuilder {
        private String topic;

        public ServiceBusSenderClientBuilder topicName(String topicName) {
            topic = topicName;
            return this;
        }

        public ServiceBusSenderClient buildClient() {
            if (!connectionString.startsWith("Endpoint=sb://")) {
                throw new IllegalArgumentException("no connection string");
            }
            if (!topic.equals("status") || ++made > 1) {
                throw new AssertionError("one connection per process, to the topic");
            }
            return new ServiceBusSenderClient();
        }
    }
}
