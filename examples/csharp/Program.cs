using System;
using Azure.Identity;
using Azure.Messaging.ServiceBus;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;

namespace StatusRelay.Kit
{
    public static class Program
    {
        public static void Main()
        {
            new HostBuilder()
                .ConfigureFunctionsWorkerDefaults()
                // One connection per process, made when it is first used.
                .ConfigureServices(services => services.AddSingleton(_ => new Lazy<ServiceBusSender>(() => Connect().CreateSender(Status.Topic))))
                .Build()
                .Run();
        }

        static ServiceBusClient Connect()
        {
            var options = new ServiceBusClientOptions();
            options.RetryOptions.MaxRetries = 1; // the orchestrator tries again
            options.RetryOptions.TryTimeout = TimeSpan.FromSeconds(10);
            string connection = Environment.GetEnvironmentVariable("ServiceBus"); // as the bindings read it
            return connection != null
                ? new ServiceBusClient(connection, options)
                : new ServiceBusClient(Environment.GetEnvironmentVariable("ServiceBus__fullyQualifiedNamespace"), new DefaultAzureCredential(), options);
        }
    }
}
