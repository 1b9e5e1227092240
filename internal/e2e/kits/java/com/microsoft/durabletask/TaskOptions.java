package com.microsoft.durabletask;

public final class TaskOptions {
    public final RetryPolicy retryPolicy;

    public TaskOptions(RetryPolicy retryPolicy) {
        this.retryPolicy = retryPolicy;
    }
}
