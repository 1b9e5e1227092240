package com.microsoft.durabletask;

import java.time.Instant;

public interface TaskOrchestrationContext {
    String getName();

    <V> V getInput(Class<V> targetType);

    String getInstanceId();

    Instant getCurrentInstant();

    void setCustomStatus(Object customStatus);

    <V> Task<V> callActivity(String name, Object input, TaskOptions options, Class<V> returnType);

    default Task<Void> callActivity(String name, Object input) {
        return callActivity(name, input, null, Void.class);
    }

    default <V> Task<V> callActivity(String name, Object input, Class<V> returnType) {
        return callActivity(name, input, null, returnType);
    }

    default Task<Void> callActivity(String name, Object input, TaskOptions options) {
        return callActivity(name, input, options, Void.class);
    }
}
