package host;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.microsoft.azure.functions.ExecutionContext;
import com.microsoft.azure.functions.OutputBinding;
import com.microsoft.azure.functions.annotation.FunctionName;
import com.microsoft.azure.functions.annotation.ServiceBusTopicOutput;
import com.microsoft.durabletask.FailureDetails;
import com.microsoft.durabletask.Task;
import com.microsoft.durabletask.TaskFailedException;
import com.microsoft.durabletask.TaskOptions;
import com.microsoft.durabletask.TaskOrchestrationContext;
import com.microsoft.durabletask.interruption.OrchestratorBlockedException;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Parameter;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.logging.Logger;

/**
 * A Functions host for the kit in examples/java.
 *
 * <p>The packages that the kit imports are not to be had where the tests run, so there are stand-ins of them beside this:
 * no more of each than the kit uses, with the signatures that the real ones have. What to run comes from the environment,
 * and what came of it is printed, as kits_test.go says.
 */
public final class Host {
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    /** A call of an activity, and, once it has ended, how. */
    private static final class Call {
        String name, input;
        int attempts = 1;
        String result;
        Throwable error;
        Instant done;

        @Override
        public String toString() {
            return name + " " + input;
        }
    }

    private final Class<?> app = Class.forName("statusrelay.kit.Orders");
    private final Map<String, Method> functions = new HashMap<>();
    private final List<Call> history = new ArrayList<>();
    private int unreachable = Integer.parseInt(System.getenv("UNREACHABLE"));

    private Host() throws ReflectiveOperationException {
        for (Method m : app.getMethods()) {
            if (m.isAnnotationPresent(FunctionName.class)) {
                functions.put(m.getAnnotation(FunctionName.class).value(), m);
            }
        }
    }

    public static void main(String[] args) throws Exception {
        new Host().orchestrate();
    }

    public static void say(Map<String, ?> line) {
        OUT.println(json(line));
    }

    private static String json(Object value) {
        try {
            return new ObjectMapper().writeValueAsString(value);
        } catch (java.io.IOException e) {
            throw new IllegalArgumentException(e);
        }
    }

    /** One run of the orchestrator from its start, through what has happened, to the first call that is new. */
    private final class Replay implements TaskOrchestrationContext {
        Instant clock;
        int calls;
        Call asked; // the new one
        Object customStatus;

        @Override
        public String getName() {
            return System.getenv("NAME");
        }

        @Override
        public String getInstanceId() {
            return System.getenv("INSTANCE");
        }

        @Override
        public Instant getCurrentInstant() {
            return clock;
        }

        @Override
        public void setCustomStatus(Object status) {
            customStatus = status;
        }

        @Override
        public <V> V getInput(Class<V> type) {
            try {
                return type.cast(ObjectMapper.read(System.getenv("INPUT"), type));
            } catch (ReflectiveOperationException e) {
                throw new IllegalArgumentException(e);
            }
        }

        @Override
        public <V> Task<V> callActivity(String name, Object input, TaskOptions options, Class<V> type) {
            if (asked != null) {
                throw new IllegalStateException("it goes on although it was stopped");
            }
            Call call = new Call();
            call.name = name;
            call.input = json(input);
            call.attempts = options == null ? 1 : options.retryPolicy.attempts;
            int id = calls++;
            return new Task<V>() {
                @Override
                public V await() {
                    if (id == history.size()) {
                        asked = call;
                        throw new OrchestratorBlockedException("not to be caught");
                    }
                    Call past = history.get(id);
                    if (!past.toString().equals(call.toString())) {
                        System.err.println("a replay went another way: " + call + " instead of " + past);
                        System.exit(1);
                    }
                    clock = past.done; // a kit that takes a later reading gets another generation
                    if (past.error != null) {
                        throw new TaskFailedException(name, id, new FailureDetails(past.error));
                    }
                    try {
                        return type == Void.class ? null : type.cast(ObjectMapper.read(past.result, type));
                    } catch (ReflectiveOperationException e) {
                        throw new IllegalStateException(e);
                    }
                }
            };
        }
    }

    private void orchestrate() throws ReflectiveOperationException {
        Instant start = Instant.ofEpochMilli(Long.parseLong(System.getenv("START")));
        Instant clock = start;
        for (int episodes = 1; ; episodes++) {
            Replay replay = new Replay();
            replay.clock = start;
            Map<String, Object> end = new HashMap<>();
            try {
                end.put("output", functions.get(System.getenv("NAME")).invoke(instance(), replay));
                end.put("ended", "Completed");
                end.put("customStatus", replay.customStatus);
            } catch (InvocationTargetException e) {
                if (!(e.getCause() instanceof OrchestratorBlockedException)) {
                    end.put("ended", "Failed");
                    end.put("error", e.getCause().getMessage());
                }
            }
            if (!end.isEmpty()) {
                end.put("episodes", episodes);
                say(end);
                return;
            }
            Call call = replay.asked;
            for (int attempt = 1; attempt <= call.attempts; attempt++) {
                clock = clock.plusMillis(1234);
                call.done = clock;
                call.error = null;
                try {
                    call.result = activity(call);
                    break;
                } catch (InvocationTargetException e) {
                    call.error = e.getCause();
                }
            }
            history.add(call);
        }
    }

    private Object instance() throws ReflectiveOperationException {
        return app.getConstructor().newInstance();
    }

    private String activity(Call call) throws ReflectiveOperationException {
        String name = call.name;
        if (name.equals("PublishStatus") && unreachable-- > 0) {
            throw new InvocationTargetException(new IllegalStateException("no broker"));
        }
        if (name.equals("PublishStatus")) {
            name = System.getenv("PUBLISH");
        }
        if ("yes".equals(System.getenv("REPEAT"))) {
            invoke(functions.get(name), call.input); // the host died before it knew
        }
        return invoke(functions.get(name), call.input);
    }

    private String invoke(Method f, String input) throws ReflectiveOperationException {
        List<Object> args = new ArrayList<>();
        for (Parameter p : f.getParameters()) {
            ServiceBusTopicOutput binding = p.getAnnotation(ServiceBusTopicOutput.class);
            if (binding != null) {
                if (!binding.topicName().equals("status") || !binding.connection().equals("ServiceBus")) {
                    throw new IllegalStateException("the binding leads elsewhere");
                }
                args.add((OutputBinding<Object>) value -> say(Map.of("body", value)));
            } else if (p.getType() == ExecutionContext.class) {
                args.add((ExecutionContext) () -> Logger.getLogger("kit"));
            } else {
                args.add(ObjectMapper.read(input, p.getParameterizedType()));
            }
        }
        return json(f.invoke(instance(), args.toArray()));
    }
}
