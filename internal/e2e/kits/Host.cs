// A Functions host for the kit in examples/csharp.
//
// The packages that the kit refers to are not to be had where the tests run, so there are stand-ins of them here: no more
// of each than the kit uses, with the signatures that the real ones have. What to run comes from the environment, and
// what came of it is printed, as kits_test.go says. Mono's compiler takes C# 7, and so the kit is written in that.
using System;
using System.Collections;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Reflection;
using System.Text;
using System.Text.Json.Nodes;
using System.Threading.Tasks;
using Azure.Messaging.ServiceBus;
using Microsoft.Azure.Functions.Worker;
using Microsoft.DurableTask;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;

namespace System.Text.Json.Nodes
{
    public abstract class JsonNode
    {
        JsonNode parent;

        /// <summary>A node has one place in one tree; the real one throws as well.</summary>
        internal static JsonNode Adopt(JsonNode child, JsonNode by)
        {
            if (child == null)
                return null;
            if (child.parent != null)
                throw new InvalidOperationException("The node already has a parent.");
            child.parent = by;
            return child;
        }

        public JsonNode this[string name]
        {
            get { JsonNode v; AsObject().members.TryGetValue(name, out v); return v; }
            set
            {
                JsonObject o = AsObject();
                if (!o.members.ContainsKey(name))
                    o.names.Add(name);
                o.members[name] = Adopt(value, o);
            }
        }

        public JsonObject AsObject() => (JsonObject)this;
        public JsonArray AsArray() => (JsonArray)this;
        public JsonNode DeepClone() => Parse(ToJsonString());
        public string ToJsonString() { var b = new StringBuilder(); Write(b); return b.ToString(); }
        public override string ToString() => (this as JsonValue)?.Value as string ?? ToJsonString();
        internal abstract void Write(StringBuilder b);

        public static implicit operator JsonNode(string v) => v == null ? null : new JsonValue(v);
        public static implicit operator JsonNode(int v) => new JsonValue((long)v);
        public static implicit operator JsonNode(long v) => new JsonValue(v);
        public static explicit operator string(JsonNode n) => n == null ? null : (string)((JsonValue)n).Value;
        public static explicit operator long(JsonNode n) => (long)((JsonValue)n).Value;

        internal static void Quote(StringBuilder b, string s)
        {
            b.Append('"');
            foreach (char c in s) // the real one escapes all of these as well
                b.Append(c < ' ' || c > '~' || "\"\\<>&'+`".IndexOf(c) >= 0 ? "\\u" + ((int)c).ToString("X4") : c.ToString());
            b.Append('"');
        }

        public static JsonNode Parse(string text)
        {
            int at = 0;
            JsonNode n = Value(text, ref at);
            Space(text, ref at);
            if (at != text.Length)
                throw new FormatException("more than one JSON value: " + text);
            return n;
        }

        static void Space(string s, ref int at) { while (at < s.Length && char.IsWhiteSpace(s[at])) at++; }

        static bool Next(string s, ref int at, char c)
        {
            Space(s, ref at);
            if (at >= s.Length || s[at] != c)
                return false;
            at++;
            return true;
        }

        static void Need(string s, ref int at, char c)
        {
            if (!Next(s, ref at, c))
                throw new FormatException("no " + c + " at " + at + " in " + s);
        }

        static JsonNode Value(string s, ref int at)
        {
            if (Next(s, ref at, '{'))
            {
                var o = new JsonObject();
                for (bool first = true; !Next(s, ref at, '}'); first = false)
                {
                    if (!first)
                        Need(s, ref at, ',');
                    Need(s, ref at, '"');
                    string name = Text(s, ref at);
                    Need(s, ref at, ':');
                    o[name] = Value(s, ref at);
                }
                return o;
            }
            if (Next(s, ref at, '['))
            {
                var a = new JsonArray();
                for (bool first = true; !Next(s, ref at, ']'); first = false)
                {
                    if (!first)
                        Need(s, ref at, ',');
                    a.Add(Value(s, ref at));
                }
                return a;
            }
            if (Next(s, ref at, '"'))
                return new JsonValue(Text(s, ref at));
            int start = at;
            while (at < s.Length && ",]} \n".IndexOf(s[at]) < 0)
                at++;
            string word = s.Substring(start, at - start);
            return word == "null" ? null : new JsonValue(long.Parse(word, CultureInfo.InvariantCulture));
        }

        static string Text(string s, ref int at)
        {
            var b = new StringBuilder();
            for (; s[at] != '"'; at++)
            {
                if (s[at] != '\\')
                {
                    b.Append(s[at]);
                    continue;
                }
                at++;
                int known = "\"\\/bfnrt".IndexOf(s[at]);
                if (known >= 0)
                {
                    b.Append("\"\\/\b\f\n\r\t"[known]);
                    continue;
                }
                b.Append((char)int.Parse(s.Substring(at + 1, 4), NumberStyles.HexNumber));
                at += 4;
            }
            at++;
            return b.ToString();
        }
    }

    public sealed class JsonObject : JsonNode, IEnumerable<KeyValuePair<string, JsonNode>>
    {
        internal readonly Dictionary<string, JsonNode> members = new Dictionary<string, JsonNode>();
        internal readonly List<string> names = new List<string>();

        public bool ContainsKey(string name) => members.ContainsKey(name);
        public IEnumerator<KeyValuePair<string, JsonNode>> GetEnumerator() =>
            names.Select(n => new KeyValuePair<string, JsonNode>(n, members[n])).GetEnumerator();
        IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

        internal override void Write(StringBuilder b)
        {
            b.Append('{');
            for (int i = 0; i < names.Count; i++)
            {
                if (i > 0)
                    b.Append(',');
                Quote(b, names[i]);
                b.Append(':');
                if (members[names[i]] == null)
                    b.Append("null");
                else
                    members[names[i]].Write(b);
            }
            b.Append('}');
        }
    }

    public sealed class JsonArray : JsonNode
    {
        readonly List<JsonNode> items = new List<JsonNode>();

        public int Count => items.Count;
        public void Add(JsonNode item) => items.Add(Adopt(item, this));

        internal override void Write(StringBuilder b) =>
            b.Append('[').Append(string.Join(",", items.Select(i => i == null ? "null" : i.ToJsonString()))).Append(']');
    }

    sealed class JsonValue : JsonNode
    {
        internal readonly object Value;

        internal JsonValue(object value) { Value = value; }

        internal override void Write(StringBuilder b)
        {
            if (Value is string s)
                Quote(b, s);
            else
                b.Append(((long)Value).ToString(CultureInfo.InvariantCulture));
        }
    }
}

namespace Azure.Identity
{
    public class DefaultAzureCredential { }
}

namespace Azure.Messaging.ServiceBus
{
    using Azure.Identity;

    public class ServiceBusMessage
    {
        internal readonly string Body;
        string messageId, sessionId;

        public ServiceBusMessage(string body) { Body = body; }
        public string MessageId { get { return messageId; } set { messageId = Fits(value); } }
        public string SessionId { get { return sessionId; } set { sessionId = Fits(value); } }
        public string Subject { get; set; }
        public string ContentType { get; set; }
        public IDictionary<string, object> ApplicationProperties { get; } = new Dictionary<string, object>();

        static string Fits(string id)
        {
            if (id.Length > 128)
                throw new ArgumentException("longer than 128 characters");
            return id;
        }
    }

    public class ServiceBusRetryOptions
    {
        public int MaxRetries { get; set; }
        public TimeSpan TryTimeout { get; set; }
    }

    public class ServiceBusClientOptions
    {
        public ServiceBusRetryOptions RetryOptions { get; } = new ServiceBusRetryOptions();
    }

    public class ServiceBusClient
    {
        static int made;

        public ServiceBusClient(string connectionString, ServiceBusClientOptions options)
        {
            if (!connectionString.StartsWith("Endpoint=sb://"))
                throw new FormatException("no connection string");
            if (++made > 1)
                Host.Die("one connection per process");
        }

        public ServiceBusClient(string fullyQualifiedNamespace, DefaultAzureCredential credential, ServiceBusClientOptions options) { }
        public ServiceBusSender CreateSender(string queueOrTopicName) => new ServiceBusSender(queueOrTopicName);
    }

    public class ServiceBusSender
    {
        readonly string topic;

        internal ServiceBusSender(string topic) { this.topic = topic; }

        public Task SendMessageAsync(ServiceBusMessage message)
        {
            if (topic != "status")
                throw new ArgumentException("no such topic: " + topic);
            var properties = new JsonObject();
            foreach (var p in message.ApplicationProperties)
                properties[p.Key] = (string)p.Value;
            Host.Say(new JsonObject
            {
                ["body"] = message.Body, ["messageId"] = message.MessageId, ["sessionId"] = message.SessionId,
                ["subject"] = message.Subject, ["contentType"] = message.ContentType, ["properties"] = properties,
            });
            return Task.CompletedTask;
        }
    }
}

namespace Microsoft.Azure.Functions.Worker
{
    [AttributeUsage(AttributeTargets.Method)]
    public sealed class FunctionAttribute : Attribute
    {
        public FunctionAttribute(string name) { Name = name; }
        public string Name { get; }
    }

    [AttributeUsage(AttributeTargets.Parameter)]
    public sealed class OrchestrationTriggerAttribute : Attribute { }

    [AttributeUsage(AttributeTargets.Parameter)]
    public sealed class ActivityTriggerAttribute : Attribute { }

    public enum ServiceBusEntityType { Queue, Topic }

    public sealed class ServiceBusOutputAttribute : Attribute
    {
        public ServiceBusOutputAttribute(string queueOrTopicName, ServiceBusEntityType entityType = ServiceBusEntityType.Queue)
        {
            QueueOrTopicName = queueOrTopicName;
            EntityType = entityType;
        }

        public string QueueOrTopicName { get; private set; }
        public string Connection { get; set; }
        public ServiceBusEntityType EntityType { get; set; }
    }
}

namespace Microsoft.Extensions.Logging
{
    public interface ILogger { }

    public interface ILogger<out T> : ILogger { }

    public static class LoggerExtensions
    {
        public static void LogWarning(this ILogger logger, string message, params object[] args) =>
            Console.Error.WriteLine(message + " " + string.Join(" ", args));
    }

    sealed class Logger<T> : ILogger<T> { }
}

namespace Microsoft.Extensions.DependencyInjection
{
    public interface IServiceCollection { }

    public sealed class Services : IServiceCollection
    {
        internal readonly Dictionary<Type, Lazy<object>> All = new Dictionary<Type, Lazy<object>>();

        internal object Of(Type t) => All.TryGetValue(t, out var service) ? service.Value
            : Activator.CreateInstance(typeof(Logger<>).MakeGenericType(t.GetGenericArguments()));
    }

    public static class ServiceCollectionServiceExtensions
    {
        public static IServiceCollection AddSingleton<T>(this IServiceCollection services, Func<IServiceProvider, T> factory) where T : class
        {
            ((Services)services).All[typeof(T)] = new Lazy<object>(() => factory(null));
            return services;
        }
    }
}

namespace Microsoft.Extensions.Hosting
{
    public interface IHost
    {
        Services Services { get; }
    }

    public interface IHostBuilder
    {
        IHost Build();
    }

    public sealed class HostBuilder : IHostBuilder, IHost
    {
        public Services Services { get; } = new Services();
        public IHost Build() => this;
    }

    public static class HostExtensions
    {
        public static IHostBuilder ConfigureFunctionsWorkerDefaults(this IHostBuilder builder) => builder;

        public static IHostBuilder ConfigureServices(this IHostBuilder builder, Action<IServiceCollection> configure)
        {
            configure(((HostBuilder)builder).Services);
            return builder;
        }

        public static void Run(this IHost host) => new Host(host.Services).Orchestrate();
    }
}

namespace Microsoft.DurableTask
{
    public struct TaskName
    {
        public TaskName(string name) { Name = name; }
        public string Name { get; }
        public static implicit operator TaskName(string value) => new TaskName(value);
    }

    public class RetryPolicy
    {
        public RetryPolicy(int maxNumberOfAttempts, TimeSpan firstRetryInterval) { MaxNumberOfAttempts = maxNumberOfAttempts; }
        public int MaxNumberOfAttempts { get; }
    }

    public class TaskOptions
    {
        internal int Attempts;

        public static TaskOptions FromRetryPolicy(RetryPolicy policy) => new TaskOptions { Attempts = policy.MaxNumberOfAttempts };
    }

    public sealed class TaskFailedException : Exception
    {
        internal TaskFailedException(string taskName, int taskId, Exception inner)
            : base($"Task '{taskName}' (#{taskId}) failed with an unhandled exception: {inner.Message}") { }
    }

    public abstract class TaskOrchestrationContext
    {
        public abstract TaskName Name { get; }
        public abstract string InstanceId { get; }
        public abstract DateTime CurrentUtcDateTime { get; }
        public abstract T GetInput<T>();
        public abstract void SetCustomStatus(object customStatus);
        public abstract Task<TResult> CallActivityAsync<TResult>(TaskName name, object input = null, TaskOptions options = null);

        public virtual Task CallActivityAsync(TaskName name, object input = null, TaskOptions options = null) =>
            CallActivityAsync<object>(name, input, options);
    }
}

/// <summary>A call of an activity, and, once it has ended, how.</summary>
sealed class Call
{
    internal string Name;
    internal JsonNode Input;
    internal int Attempts;
    internal object Result;
    internal Exception Error;
    internal DateTime Done;

    public override string ToString() => Name + " " + Input.ToJsonString();
}

/// <summary>One run of the orchestrator from its start, through what has happened, to the first call that is new.</summary>
sealed class Replay : TaskOrchestrationContext
{
    readonly List<Call> history;
    DateTime clock;
    int calls;
    internal Call Asked; // the new one
    internal JsonNode CustomStatus;

    internal Replay(List<Call> history, DateTime start)
    {
        this.history = history;
        clock = start;
    }

    public override TaskName Name => Host.Env("NAME");
    public override string InstanceId => Host.Env("INSTANCE");
    public override DateTime CurrentUtcDateTime => clock;
    public override T GetInput<T>() => (T)(object)JsonNode.Parse(Host.Env("INPUT"));
    public override void SetCustomStatus(object customStatus) => CustomStatus = ((JsonNode)customStatus).DeepClone();

    public override Task<TResult> CallActivityAsync<TResult>(TaskName name, object input = null, TaskOptions options = null)
    {
        var call = new Call { Name = name.Name, Input = Host.Travel(input), Attempts = options?.Attempts ?? 1 };
        var task = new TaskCompletionSource<TResult>();
        if (calls == history.Count)
        {
            Asked = call;
            return task.Task; // which never ends: the next run comes further
        }
        Call past = history[calls];
        if (past.ToString() != call.ToString())
            Host.Die($"a replay went another way: {call} instead of {past}");
        clock = past.Done; // a kit that takes a later reading gets another generation
        if (past.Error != null)
            task.SetException(new TaskFailedException(past.Name, calls, past.Error));
        else
            task.SetResult((TResult)past.Result);
        calls++;
        return task.Task;
    }
}

sealed class Host
{
    readonly Services services;
    readonly Dictionary<string, MethodInfo> functions;
    int unreachable = int.Parse(Env("UNREACHABLE"));

    internal Host(Services services)
    {
        this.services = services;
        functions = Assembly.GetExecutingAssembly().GetTypes()
            .SelectMany(t => t.GetMethods(BindingFlags.Public | BindingFlags.Static | BindingFlags.Instance))
            .Where(m => m.GetCustomAttribute<FunctionAttribute>() != null)
            .ToDictionary(m => m.GetCustomAttribute<FunctionAttribute>().Name);
    }

    internal static string Env(string name) => Environment.GetEnvironmentVariable(name);
    internal static void Say(JsonObject line) => Console.WriteLine(line.ToJsonString());

    internal static void Die(string why)
    {
        Console.Error.WriteLine(why);
        Environment.Exit(1);
    }

    /// <summary>What comes out at the other end, as JSON.</summary>
    internal static JsonNode Travel(object value) => JsonNode.Parse((value as JsonNode ?? (JsonNode)(string)value).ToJsonString());

    internal void Orchestrate()
    {
        // Of no kind, as a time that is read from JSON or a message may be. The test's time zone is not UTC.
        DateTime start = new DateTime(1970, 1, 1).AddMilliseconds(long.Parse(Env("START"))), clock = start;
        var history = new List<Call>();
        for (int episodes = 1; ; episodes++)
        {
            var replay = new Replay(history, start);
            var run = (Task<JsonObject>)functions[Env("NAME")].Invoke(null, new object[] { replay });
            if (run.IsFaulted)
            {
                Say(new JsonObject { ["ended"] = "Failed", ["error"] = run.Exception.InnerException.Message, ["episodes"] = episodes });
                return;
            }
            if (run.IsCompleted)
            {
                Say(new JsonObject { ["ended"] = "Completed", ["output"] = run.Result, ["customStatus"] = replay.CustomStatus, ["episodes"] = episodes });
                return;
            }
            Call call = replay.Asked;
            for (int attempt = 1; attempt <= call.Attempts; attempt++)
            {
                clock = clock.AddMilliseconds(1234);
                call.Done = clock;
                try
                {
                    call.Result = Activity(call);
                    call.Error = null;
                    break;
                }
                catch (Exception error)
                {
                    call.Error = (error as TargetInvocationException)?.InnerException ?? error;
                }
            }
            history.Add(call);
        }
    }

    object Activity(Call call)
    {
        string name = call.Name;
        if (name == "PublishStatus" && unreachable-- > 0)
            throw new Exception("no broker");
        if (name == "PublishStatus")
            name = Env("PUBLISH");
        object result = Invoke(name, call.Input);
        return Env("REPEAT") == "yes" ? Invoke(name, call.Input) : result; // the first time the host died before it knew
    }

    object Invoke(string name, JsonNode input)
    {
        MethodInfo f = functions[name];
        object on = f.IsStatic ? null
            : Activator.CreateInstance(f.DeclaringType,
                f.DeclaringType.GetConstructors()[0].GetParameters().Select(p => services.Of(p.ParameterType)).ToArray());
        bool text = f.GetParameters().Single().ParameterType == typeof(string);
        object result = f.Invoke(on, new[] { text ? (object)(string)input : input.DeepClone() });
        if (result is Task task)
        {
            task.GetAwaiter().GetResult();
            result = f.ReturnType == typeof(Task) ? null : f.ReturnType.GetProperty("Result").GetValue(task);
        }
        var binding = f.GetCustomAttribute<ServiceBusOutputAttribute>();
        if (binding == null)
            return result;
        if (binding.QueueOrTopicName != "status" || binding.Connection != "ServiceBus" || binding.EntityType != ServiceBusEntityType.Topic)
            Die("the binding leads elsewhere");
        Say(new JsonObject { ["body"] = (string)result });
        return null;
    }
}
