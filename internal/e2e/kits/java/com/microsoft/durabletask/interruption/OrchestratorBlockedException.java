package com.microsoft.durabletask.interruption;

/** Who catches it stops the orchestration. */
public final class OrchestratorBlockedException extends RuntimeException {
    public OrchestratorBlockedException(String message) {
        super(message);
    }
}
