package statusrelay.kit;

import com.microsoft.azure.functions.ExecutionContext;
import com.microsoft.azure.functions.OutputBinding;
import com.microsoft.azure.functions.annotation.FunctionName;
import com.microsoft.azure.functions.annotation.ServiceBusTopicOutput;
import com.microsoft.durabletask.TaskFailedException;
import com.microsoft.durabletask.TaskOrchestrationContext;
import com.microsoft.durabletask.azurefunctions.DurableActivityTrigger;
import com.microsoft.durabletask.azurefunctions.DurableOrchestrationTrigger;
import java.util.List;
import java.util.Map;

public class Orders {
    /** The input. Whoever starts it takes owner and tenant from the caller's verified token: they decide who may read the status. */
    public static final class Order {
        public String card, owner, tenant;
        public List<String> items;
    }

    public static final class Work {
        public List<String> items;
        public Status.Position position;
    }

    @FunctionName("OrderFulfilment")
    public Map<String, String> orderFulfilment(@DurableOrchestrationTrigger(name = "ctx") TaskOrchestrationContext ctx) {
        Order order = ctx.getInput(Order.class);
        Reporter reporter = new Reporter(ctx, Map.of("owner", order.owner, "tenant", order.tenant));
        try {
            reporter.report(Map.of("kind", "snapshot", "runtimeStatus", "Running", "customStatus", at(10, "charge")));
            ctx.callActivity("ChargeCard", order.card).await();
            reporter.report(Map.of("kind", "progress", "customStatus", at(40, "pack")));
            Work work = new Work();
            work.items = order.items;
            work.position = reporter.position();
            Map<String, String> output = Map.of("parcel", ctx.callActivity("PackItems", work, String.class).await());
            // Where a bridge reports the lifecycle, leave runtimeStatus and output to it, here and below.
            reporter.report(Map.of("kind", "snapshot", "runtimeStatus", "Completed", "customStatus", at(100, "done"), "output", output));
            return output;
        } catch (TaskFailedException e) { // and nothing wider: await() leaves the orchestrator by an exception of its own
            reporter.report(Map.of("kind", "lifecycle", "runtimeStatus", "Failed",
                    "failure", Map.of("type", e.getErrorDetails().getErrorType(), "message", e.getErrorDetails().getErrorMessage())));
            throw e;
        }
    }

    private static Map<String, Object> at(int percent, String step) {
        return Map.of("percent", percent, "step", step);
    }

    @FunctionName("PublishStatus")
    public void publishStatus(@DurableActivityTrigger(name = "message") Status.Message message) {
        Status.send(message);
    }

    /** The other way, without the SDK: the binding sends the body and nothing else. To use it, name it in Reporter.report. */
    @FunctionName("PublishStatusByBinding")
    public void publishStatusByBinding(
            @DurableActivityTrigger(name = "message") Status.Message message,
            @ServiceBusTopicOutput(name = "out", topicName = Status.TOPIC, subscriptionName = "", connection = "ServiceBus") OutputBinding<String> out) {
        out.setValue(message.body);
    }

    @FunctionName("ChargeCard")
    public void chargeCard(@DurableActivityTrigger(name = "card") String card) {
        if (card.equals("declined")) {
            throw new IllegalStateException("card declined");
        }
    }

    @FunctionName("PackItems")
    public String packItems(@DurableActivityTrigger(name = "work") Work work, ExecutionContext context) {
        for (int k = 1; k <= work.items.size(); k++) {
            // … pack the k-th item …
            try {
                Status.tick(work.position, k, at(40 + 50 * k / work.items.size(), "pack"));
            } catch (RuntimeException e) {
                context.getLogger().warning("no status was sent: " + e.getClass().getSimpleName()); // the next one repairs it
            }
        }
        return "parcel of " + work.items.size();
    }
}
