package com.azure.messaging.servicebus;

import java.util.HashMap;
import java.util.Map;

public class ServiceBusMessage {
    final Map<String, Object> all = new HashMap<>();
    private final Map<String, Object> properties = new HashMap<>();

    public ServiceBusMessage(String body) {
        all.put("body", body);
        all.put("properties", properties);
    }

    public Map<String, Object> getApplicationProperties() {
        return properties;
    }

    public ServiceBusMessage setMessageId(String messageId) {
        all.put("messageId", fits(messageId));
        return this;
    }

    public ServiceBusMessage setSessionId(String sessionId) {
        all.put("sessionId", fits(sessionId));
        return this;
    }

    public ServiceBusMessage setSubject(String subject) {
        all.put("subject", subject);
        return this;
    }

    public ServiceBusMessage setContentType(String contentType) {
        all.put("contentType", contentType);
        return this;
    }

    private static String fits(String id) {
        if (id.length() > 128) {
            throw new IllegalArgumentException("longer than 128 characters");
        }
        return id;
    }
}
