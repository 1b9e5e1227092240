using System;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json.Nodes;
using System.Threading.Tasks;
using Azure.Messaging.ServiceBus;
using Microsoft.DurableTask;

// What an orchestration says about itself to statusrelay: from the orchestrator with a Reporter, from a long activity
// with Status.Tick. The message is right by its body alone; what else the Service Bus SDK can set is a help.
namespace StatusRelay.Kit
{
    /// <summary>The reports of one execution. Make it before the first await: the generation is the first reading of the
    /// orchestration's own clock, and the counter is a variable of the orchestrator, so every replay finds the same ones.</summary>
    public sealed class Reporter
    {
        static readonly TaskOptions Retry = TaskOptions.FromRetryPolicy(new RetryPolicy(3, TimeSpan.FromSeconds(1)));

        readonly TaskOrchestrationContext context;
        readonly JsonObject labels;
        readonly long generation;
        long calls;

        public Reporter(TaskOrchestrationContext context, JsonObject labels)
        {
            this.context = context;
            this.labels = labels;
            generation = new DateTimeOffset(DateTime.SpecifyKind(context.CurrentUtcDateTime, DateTimeKind.Utc)).ToUnixTimeMilliseconds();
        }

        /// <summary>The place of the next report; what an activity is given it may count on from, up to 999.</summary>
        public JsonObject Position() => new JsonObject
        {
            ["hub"] = Status.Hub,
            ["instanceId"] = context.InstanceId,
            ["name"] = context.Name.Name,
            ["generation"] = generation,
            ["sequence"] = ++calls * 1000,
            ["labels"] = labels.DeepClone(),
        };

        /// <summary>Publishes what the fields say; await it.</summary>
        public async Task Report(JsonObject fields)
        {
            JsonObject update = Position();
            foreach (var field in fields)
                update[field.Key] = field.Value?.DeepClone();
            if (fields.ContainsKey("customStatus"))
                context.SetCustomStatus(fields["customStatus"]); // for the built-in API
            try
            {
                await context.CallActivityAsync("PublishStatus", update, Retry);
            }
            catch (TaskFailedException)
            {
                // Nobody was told, and the order goes on: the next report says it all again.
            }
        }
    }

    public static class Status
    {
        public const string Hub = "orders"; // extensions.durableTask.hubName in host.json
        public const string Topic = "status";

        /// <summary>The body: a CloudEvent around the update.</summary>
        public static JsonObject Event(JsonObject update)
        {
            string now = DateTime.UtcNow.ToString("yyyy-MM-dd'T'HH:mm:ss.fffffff'Z'");
            var data = (JsonObject)update.DeepClone();
            data["lastUpdatedTime"] = now;
            return new JsonObject
            {
                ["specversion"] = "1.0",
                ["type"] = "durable.status.v1",
                ["source"] = $"/hubs/{data["hub"]}/activity",
                ["subject"] = (string)data["instanceId"],
                ["id"] = $"{Key(data)}/{data["generation"]}/{data["kind"]}/{data["sequence"]}", // a repeated activity says the same again
                ["time"] = now,
                ["datacontenttype"] = "application/json",
                ["data"] = data,
            };
        }

        /// <summary>The message of the SDK, which, unlike an output binding, also sets what the broker goes by.</summary>
        public static ServiceBusMessage Message(JsonObject update)
        {
            JsonObject body = Event(update);
            var message = new ServiceBusMessage(body.ToJsonString())
            {
                MessageId = Short((string)body["id"]), // for duplicate detection
                SessionId = Short(Key(update)),
                Subject = (string)body["type"],
                ContentType = "application/cloudevents+json",
            };
            message.ApplicationProperties["hub"] = (string)update["hub"];
            message.ApplicationProperties["name"] = (string)update["name"];
            return message;
        }

        /// <summary>The k-th update from within an activity.</summary>
        public static JsonObject Tick(JsonObject position, int k, JsonObject customStatus)
        {
            var update = (JsonObject)position.DeepClone();
            update["sequence"] = (long)position["sequence"] + Math.Min(k, 999);
            update["kind"] = "progress";
            update["customStatus"] = customStatus;
            return update;
        }

        static string Key(JsonObject update) => $"{update["hub"]}/{update["instanceId"]}";

        // Service Bus takes ids of up to 128 characters.
        static string Short(string id)
        {
            if (id.Length <= 128)
                return id;
            using (var sha = SHA256.Create())
                return BitConverter.ToString(sha.ComputeHash(Encoding.UTF8.GetBytes(id))).Replace("-", "").ToLowerInvariant();
        }
    }
}
