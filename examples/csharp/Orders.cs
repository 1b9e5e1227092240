using System;
using System.Text.Json.Nodes;
using System.Threading.Tasks;
using Azure.Messaging.ServiceBus;
using Microsoft.Azure.Functions.Worker;
using Microsoft.DurableTask;
using Microsoft.Extensions.Logging;

namespace StatusRelay.Kit
{
    public sealed class Orders
    {
        readonly Lazy<ServiceBusSender> topic;
        readonly ILogger<Orders> log;

        public Orders(Lazy<ServiceBusSender> topic, ILogger<Orders> log)
        {
            this.topic = topic;
            this.log = log;
        }

        // The input: {"card": "…", "items": ["…"], "owner": "…", "tenant": "…"}. Whoever starts it takes owner and tenant
        // from the caller's verified token: they decide who may read the status.
        [Function("OrderFulfilment")]
        public static async Task<JsonObject> OrderFulfilment([OrchestrationTrigger] TaskOrchestrationContext context)
        {
            var order = context.GetInput<JsonObject>();
            var reporter = new Reporter(context, new JsonObject { ["owner"] = (string)order["owner"], ["tenant"] = (string)order["tenant"] });
            try
            {
                await reporter.Report(new JsonObject { ["kind"] = "snapshot", ["runtimeStatus"] = "Running", ["customStatus"] = At(10, "charge") });
                await context.CallActivityAsync("ChargeCard", (string)order["card"]);
                await reporter.Report(new JsonObject { ["kind"] = "progress", ["customStatus"] = At(40, "pack") });
                string parcel = await context.CallActivityAsync<string>("PackItems",
                    new JsonObject { ["items"] = order["items"].DeepClone(), ["position"] = reporter.Position() });
                var output = new JsonObject { ["parcel"] = parcel };
                // Where a bridge reports the lifecycle, leave runtimeStatus and output to it, here and below.
                await reporter.Report(new JsonObject
                {
                    ["kind"] = "snapshot", ["runtimeStatus"] = "Completed", ["customStatus"] = At(100, "done"), ["output"] = output.DeepClone(),
                });
                return output;
            }
            catch (Exception error)
            {
                await reporter.Report(new JsonObject
                {
                    ["kind"] = "lifecycle", ["runtimeStatus"] = "Failed",
                    ["failure"] = new JsonObject { ["type"] = error.GetType().Name, ["message"] = error.Message },
                });
                throw;
            }
        }

        static JsonObject At(int percent, string step) => new JsonObject { ["percent"] = percent, ["step"] = step };

        [Function("PublishStatus")]
        public Task PublishStatus([ActivityTrigger] JsonObject update) => topic.Value.SendMessageAsync(Status.Message(update));

        // The other way, without the SDK: the binding sends the body and nothing else. To use it, name it in Reporter.Report.
        [Function("PublishStatusByBinding")]
        [ServiceBusOutput(Status.Topic, Connection = "ServiceBus", EntityType = ServiceBusEntityType.Topic)]
        public static string PublishStatusByBinding([ActivityTrigger] JsonObject update) => Status.Event(update).ToJsonString();

        [Function("ChargeCard")]
        public static void ChargeCard([ActivityTrigger] string card)
        {
            if (card == "declined")
                throw new InvalidOperationException("card declined");
        }

        [Function("PackItems")]
        public async Task<string> PackItems([ActivityTrigger] JsonObject work)
        {
            int items = work["items"].AsArray().Count;
            for (int k = 1; k <= items; k++)
            {
                // … pack the k-th item …
                try
                {
                    await topic.Value.SendMessageAsync(Status.Message(Status.Tick(work["position"].AsObject(), k, At(40 + 50 * k / items, "pack"))));
                }
                catch (Exception error)
                {
                    log.LogWarning("no status was sent: {Error}", error.GetType().Name); // the next one repairs it
                }
            }
            return $"parcel of {items}";
        }
    }
}
