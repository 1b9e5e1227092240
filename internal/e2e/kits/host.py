"""A Functions host for the kit in examples/python, and a workflow engine for that in examples/dapr.

The packages that they import are not to be had where the tests run, so there are stand-ins of them here: no more of
each than is used, with the names and parameters that the real ones have. What to run comes from the environment,
and what came of it is printed, as kits_test.go says.
"""
import asyncio
import importlib
import json
import logging
import os
import sys
import types
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

APP, NAME, INSTANCE, INPUT = (os.environ[name] for name in ("APP", "NAME", "INSTANCE", "INPUT"))
PUBLISH, REPEAT, INGEST = (os.environ[name] for name in ("PUBLISH", "REPEAT", "INGEST"))


def say(line):
    print(json.dumps(line))


def module(name, **members):
    m = sys.modules[name] = types.ModuleType(name)
    m.__path__ = []
    vars(m).update(members)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, m)


# azure.servicebus: what is sent is printed, unless it could not have been sent.

@dataclass
class ServiceBusMessage:
    body: str
    application_properties: dict
    session_id: str
    message_id: str
    content_type: str
    subject: str

    def __init__(self, body, *, application_properties, session_id, message_id, content_type, subject):
        self.body, self.application_properties, self.session_id = body, application_properties, session_id
        self.message_id, self.content_type, self.subject = message_id, content_type, subject


class Sender:
    busy = False

    async def send_messages(self, message):
        assert isinstance(message, ServiceBusMessage)
        assert not Sender.busy, "a sender is not for two coroutines at once"
        Sender.busy = True
        await asyncio.sleep(0)
        Sender.busy = False
        say({"body": message.body, "messageId": message.message_id, "sessionId": message.session_id, "subject": message.subject,
             "contentType": message.content_type, "properties": message.application_properties})


class ServiceBusClient:
    made = 0

    def __init__(self, fully_qualified_namespace, credential, *, retry_total):
        ServiceBusClient.made += 1
        assert ServiceBusClient.made == 1, "one connection per process"

    @classmethod
    def from_connection_string(cls, conn_str, *, retry_total):
        if not conn_str.startswith("Endpoint=sb://"):
            raise ValueError("no connection string")
        return cls("", None, retry_total=retry_total)

    def get_topic_sender(self, topic_name):
        assert topic_name == "status"
        return Sender()


# azure.functions and azure.durable_functions.

class Out:
    def __class_getitem__(cls, item):
        return cls

    def set(self, value):
        say({"body": value})


functions = {}


class DFApp:
    def function_name(self, name):
        def decorate(f):
            functions[name] = f
            return f
        return decorate

    def orchestration_trigger(self, context_name, orchestration=None):
        return self._parameter(context_name)

    def activity_trigger(self, input_name, activity=None):
        return self._parameter(input_name)

    def service_bus_topic_output(self, arg_name, connection, topic_name):
        assert topic_name == "status" and connection == "ServiceBus"
        return self._parameter(arg_name)

    @staticmethod
    def _parameter(name):
        """The host refuses bindings and parameters that do not match."""
        def decorate(f):
            f.bound = getattr(f, "bound", ()) + (name,)
            assert name in f.__code__.co_varnames[:f.__code__.co_argcount], f"{f.__name__} has no parameter {name}"
            return f
        return decorate


@dataclass
class RetryOptions:
    first_retry_interval_in_milliseconds: int
    max_number_of_attempts: int


@dataclass
class Call:
    name: str
    input_: object
    attempts: int = 1


class DurableOrchestrationContext:
    def __init__(self):
        self.instance_id, self.current_utc_datetime, self.custom_status = INSTANCE, None, None

    def get_input(self):
        return json.loads(INPUT)

    def set_custom_status(self, status):
        self.custom_status = status

    def call_activity(self, name, input_=None):
        return Call(name, input_)

    def call_activity_with_retry(self, name, retry_options, input_=None):
        return Call(name, input_, retry_options.max_number_of_attempts)


# dapr.ext.workflow.

class WorkflowRuntime:
    def workflow(self, *, name):
        def decorate(f):
            functions[name] = lambda context: f(DaprWorkflowContext(context), context.get_input())
            return f
        return decorate

    def activity(self, *, name):
        def decorate(f):
            def activity(input_):
                return f(None, input_)
            activity.bound = ("input_",)
            f.registered = name
            functions[name] = activity
            return f
        return decorate


@dataclass
class RetryPolicy:
    first_retry_interval: timedelta
    max_number_of_attempts: int


class DaprWorkflowContext:
    def __init__(self, context):
        self._context, self.instance_id = context, context.instance_id

    @property
    def current_utc_datetime(self):
        return self._context.current_utc_datetime.replace(tzinfo=None)  # as the real one is

    def call_activity(self, activity, *, input=None, retry_policy=None):
        return Call(activity.registered, input, retry_policy.max_number_of_attempts if retry_policy else 1)


module("azure")
module("azure.functions", Out=Out)
module("azure.durable_functions", DFApp=DFApp, RetryOptions=RetryOptions, DurableOrchestrationContext=DurableOrchestrationContext)
module("azure.servicebus", ServiceBusMessage=ServiceBusMessage)
module("azure.servicebus.aio", ServiceBusClient=ServiceBusClient)
module("azure.identity")
module("azure.identity.aio", DefaultAzureCredential=object)

module("dapr")
module("dapr.ext")
module("dapr.ext.workflow", WorkflowRuntime=WorkflowRuntime, RetryPolicy=RetryPolicy, DaprWorkflowContext=DaprWorkflowContext,
       WorkflowActivityContext=object)

logging.basicConfig(stream=sys.stderr)
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(APP))
if INGEST:
    sys.modules["servicebus"] = importlib.import_module("ingest")  # the line that is to be changed
importlib.import_module(os.path.splitext(os.path.basename(APP))[0])

unreachable = int(os.environ["UNREACHABLE"])


async def activity(name, input_):
    global unreachable
    if name == "PublishStatus":
        if unreachable > 0:
            unreachable -= 1
            raise RuntimeError("no broker")
        name = PUBLISH
    f = functions[name]
    input_ = json.loads(json.dumps(input_))  # as it travels
    for _ in range(2 if REPEAT else 1):  # the first time the host died before it knew
        result = f(input_, Out()) if len(f.bound) == 2 else f(input_)
        if asyncio.iscoroutine(result):
            result = await result
    return json.loads(json.dumps(result))


@dataclass
class Done:
    call: str
    at: datetime
    result: object = None
    error: str = ""


async def main():
    clock = datetime.fromtimestamp(0, timezone.utc) + timedelta(milliseconds=int(os.environ["START"]))
    start, history, episodes = clock, [], 0
    while True:
        episodes += 1
        context = DurableOrchestrationContext()
        context.current_utc_datetime = start
        generator = functions[NAME](context)
        try:
            call = next(generator)
            for done in history:
                assert json.dumps(vars(call)) == done.call, f"a replay went another way: {call} instead of {done.call}"
                context.current_utc_datetime = done.at  # a kit that takes a later reading gets another generation
                # What the real executor raises is an Exception with the text, not what the activity raised.
                call = generator.throw(Exception(done.error)) if done.error else generator.send(done.result)
        except StopIteration as end:
            return say({"ended": "Completed", "output": end.value, "customStatus": context.custom_status, "episodes": episodes})
        except AssertionError:
            raise
        except Exception as error:
            return say({"ended": "Failed", "error": str(error), "episodes": episodes})
        for attempt in range(1, call.attempts + 1):
            clock += timedelta(milliseconds=1234)
            done = Done(json.dumps(vars(call)), clock)
            try:
                done.result = await activity(call.name, call.input_)
                break
            except AssertionError:
                raise
            except Exception as error:
                done.error = f"Activity function '{call.name}' failed: {error}"
        history.append(done)


asyncio.run(main())
