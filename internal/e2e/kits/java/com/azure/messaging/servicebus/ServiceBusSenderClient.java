package com.azure.messaging.servicebus;

import host.Host;

public final class ServiceBusSenderClient {
    public void sendMessage(ServiceBusMessage message) {
        Host.say(message.all);
    }
}
