package com.microsoft.durabletask;

public class TaskFailedException extends RuntimeException {
    private final FailureDetails details;

    public TaskFailedException(String taskName, int taskId, FailureDetails details) {
        super(String.format("Task '%s' (#%d) failed with an unhandled exception: %s", taskName, taskId, details.getErrorMessage()));
        this.details = details;
    }

    public FailureDetails getErrorDetails() {
        return details;
    }
}
