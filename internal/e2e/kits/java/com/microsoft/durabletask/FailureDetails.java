package com.microsoft.durabletask;

public final class FailureDetails {
    private final Throwable error;

    public FailureDetails(Throwable error) {
        this.error = error;
    }

    public String getErrorType() {
        return error.getClass().getName();
    }

    public String getErrorMessage() {
        return error.getMessage();
    }
}
