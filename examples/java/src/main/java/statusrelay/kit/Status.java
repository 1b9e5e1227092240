package statusrelay.kit;

import com.azure.core.amqp.AmqpRetryOptions;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.messaging.servicebus.ServiceBusClientBuilder;
import com.azure.messaging.servicebus.ServiceBusMessage;
import com.azure.messaging.servicebus.ServiceBusSenderClient;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;

/**
 * What an orchestration says about itself to statusrelay: from the orchestrator with a Reporter, from a long activity
 * with tick(). The message is right by its body alone; what else the Service Bus SDK can set is a help.
 */
public final class Status {
    static final String HUB = "orders"; // extensions.durableTask.hubName in host.json
    static final String TOPIC = "status";

    private static final ObjectMapper JSON = new ObjectMapper().enable(SerializationFeature.ORDER_MAP_ENTRIES_BY_KEYS);

    private Status() {}

    /** The place of a report; what an activity is given it may count on from, up to 999. */
    public static final class Position {
        public String hub, instanceId, name;
        public long generation, sequence;
        public Map<String, String> labels;
    }

    /** What PublishStatus is given: finished, since JSON that travels as an object comes out with other numbers. */
    public static final class Message {
        public String id, session, hub, name, body;
    }

    /** The message: a CloudEvent around the update. */
    static Message message(Position at, Instant now, Map<String, Object> fields) {
        Map<String, Object> update = new HashMap<>(fields);
        update.put("hub", at.hub);
        update.put("instanceId", at.instanceId);
        update.put("name", at.name);
        update.put("generation", at.generation);
        update.put("sequence", at.sequence);
        update.put("labels", at.labels);
        update.put("lastUpdatedTime", now.toString());
        Message m = new Message();
        m.session = at.hub + "/" + at.instanceId;
        m.id = m.session + "/" + at.generation + "/" + fields.get("kind") + "/" + at.sequence; // a repeated activity says the same again
        m.hub = at.hub;
        m.name = at.name;
        try {
            m.body = JSON.writeValueAsString(Map.of(
                    "specversion", "1.0",
                    "type", "durable.status.v1",
                    "source", "/hubs/" + at.hub + "/activity",
                    "subject", at.instanceId,
                    "id", m.id,
                    "time", now.toString(),
                    "datacontenttype", "application/json",
                    "data", update));
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException("a status that is not JSON", e);
        }
        return m;
    }

    /** Sends a message with the SDK, which, unlike an output binding, also sets what the broker goes by. */
    static void send(Message m) {
        ServiceBusMessage message = new ServiceBusMessage(m.body)
                .setMessageId(fit(m.id)) // for duplicate detection
                .setSessionId(fit(m.session))
                .setSubject("durable.status.v1")
                .setContentType("application/cloudevents+json");
        message.getApplicationProperties().put("hub", m.hub);
        message.getApplicationProperties().put("name", m.name);
        topic().sendMessage(message);
    }

    /** Sends the k-th update from within an activity. */
    static void tick(Position from, int k, Map<String, Object> customStatus) {
        Position at = new Position();
        at.hub = from.hub;
        at.instanceId = from.instanceId;
        at.name = from.name;
        at.generation = from.generation;
        at.sequence = from.sequence + Math.min(k, 999);
        at.labels = from.labels;
        send(message(at, Instant.now(), Map.of("kind", "progress", "customStatus", customStatus)));
    }

    /** Service Bus takes ids of up to 128 characters. */
    private static String fit(String id) {
        if (id.length() <= 128) {
            return id;
        }
        try {
            StringBuilder hex = new StringBuilder();
            for (byte b : MessageDigest.getInstance("SHA-256").digest(id.getBytes(StandardCharsets.UTF_8))) {
                hex.append(String.format("%02x", b));
            }
            return hex.toString();
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError(e); // every Java has it
        }
    }

    private static ServiceBusSenderClient sender; // one connection per process, made when it is first used

    private static synchronized ServiceBusSenderClient topic() {
        if (sender == null) {
            ServiceBusClientBuilder builder = new ServiceBusClientBuilder()
                    .retryOptions(new AmqpRetryOptions().setMaxRetries(1).setTryTimeout(Duration.ofSeconds(10))); // the orchestrator tries again
            String connection = System.getenv("ServiceBus"); // as the bindings read it
            builder = connection != null
                    ? builder.connectionString(connection)
                    : builder.credential(System.getenv("ServiceBus__fullyQualifiedNamespace"), new DefaultAzureCredentialBuilder().build());
            sender = builder.sender().topicName(TOPIC).buildClient();
        }
        return sender;
    }
}
