package statusrelay.kit;

import com.microsoft.durabletask.RetryPolicy;
import com.microsoft.durabletask.TaskFailedException;
import com.microsoft.durabletask.TaskOptions;
import com.microsoft.durabletask.TaskOrchestrationContext;
import java.time.Duration;
import java.util.Map;

/**
 * The reports of one execution. Make it before the first await(): the generation is the first reading of the
 * orchestration's own clock, and the counter is a variable of the orchestrator, so every replay finds the same ones.
 */
final class Reporter {
    private static final TaskOptions RETRY = new TaskOptions(new RetryPolicy(3, Duration.ofSeconds(1)));

    private final TaskOrchestrationContext ctx;
    private final Map<String, String> labels;
    private final long generation;
    private long calls;

    Reporter(TaskOrchestrationContext ctx, Map<String, String> labels) {
        this.ctx = ctx;
        this.labels = labels;
        this.generation = ctx.getCurrentInstant().toEpochMilli();
    }

    /** The place of the next report. */
    Status.Position position() {
        Status.Position at = new Status.Position();
        at.hub = Status.HUB;
        at.instanceId = ctx.getInstanceId();
        at.name = ctx.getName();
        at.generation = generation;
        at.sequence = ++calls * 1000;
        at.labels = labels;
        return at;
    }

    /** Publishes what the fields say and waits for it. */
    void report(Map<String, Object> fields) {
        if (fields.containsKey("customStatus")) {
            ctx.setCustomStatus(fields.get("customStatus")); // for the built-in API
        }
        try {
            ctx.callActivity("PublishStatus", Status.message(position(), ctx.getCurrentInstant(), fields), RETRY).await();
        } catch (TaskFailedException e) {
            // Nobody was told, and the order goes on: the next report says it all again.
        }
    }
}
