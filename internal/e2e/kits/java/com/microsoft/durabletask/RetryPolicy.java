package com.microsoft.durabletask;

import java.time.Duration;

public final class RetryPolicy {
    public final int attempts;

    public RetryPolicy(int maxNumberOfAttempts, Duration firstRetryInterval) {
        attempts = maxNumberOfAttempts;
    }
}
