// Package statusrelay tells a relay how orchestrations are doing, from Go: from the activities and services that do the work, or
// from the engine that runs them. It sends updates to Azure Service Bus ([ServiceBus]) or to the notifier over HTTP ([Notifier]).
//
//	publisher, err := statusrelay.NewServiceBus(statusrelay.ServiceBusOptions{ConnectionString: secret, Entity: "status"})
//	err = publisher.Publish(ctx, statusrelay.Update{
//		Hub: "orders", InstanceID: "order-4711", Name: "OrderFulfilment",
//		Position:     position, // see below
//		CustomStatus: map[string]any{"percent": 60, "step": "pack"},
//		Labels:       map[string]string{"owner": "u-1001"},
//	})
//
// # Two lanes
//
// An update says how far an orchestration is (CustomStatus: the progress lane), what state it is in (RuntimeStatus, Output,
// Failure: the lifecycle lane), or both. The lanes are ordered separately and each has one publisher: if something
// else announces what became of an instance (a tap of the engine, a bridge), activities report progress alone. Who is the only
// source ends with an update that has both:
//
//	{…, RuntimeStatus: statusrelay.Completed, CustomStatus: map[string]any{"percent": 100}}
//
// # Positions
//
// The relay keeps the update with the highest [Position], whatever order updates come in and how often. A position is
// the generation (the start of this execution in unix milliseconds) and a sequence that grows within it. There are two ways to
// one, not to be mixed within a lane of an execution:
//
// An orchestrator counts. Its code is run again and again (replay), so it must not send anything, but counting is replay-safe. It
// passes each position on as a part of an activity's input, and the activity sends:
//
//	execution := statusrelay.Started(ctx.CurrentTimeUtc) // first line of the orchestrator; the same at each replay
//	position := execution.Next()                         // per activity call: 1000, 2000, …
//	position.Tick(1)                                     // in the activity, as it proceeds: 1001, 1002, … to 1999
//
// What runs once, or in parallel, has no counter and takes the clock, in unix microseconds:
//
//	statusrelay.Started(started).At(time.Now())
//
// Two publishers of one instance must agree on the generation to the millisecond. One that cannot know it leaves it out, and the
// sequence with it: the broker's order counts then, and gives way to any that is declared. OccurredTime tells it from an earlier execution's.
//
// # Errors
//
// Publish returns nil when the broker has all updates. An [*InvalidError] names the update and its field that breaks a rule, and nothing
// was sent; a [*RefusedError] is the notifier's answer about one update. Both stay as they are however often it is tried;
// every other error may pass, and the same updates may be published again: an update that arrives twice counts once. (What has no full
// position may repeat what a later one has replaced.)
//
// No error holds a credential or a value of an update.
package statusrelay
