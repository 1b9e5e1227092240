// Package shop has orchestrations that are worth watching: a chain, a fan-out, one that waits for people, one that goes on for ever as new, one that
// fails, and one with children.
//
// Each sets the engine's custom status before each step. The steps are activities, which know whose they are and their position, and so
// can report progress by themselves ([Activity]).
package shop

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/microsoft/durabletask-go/task"

	statusrelay "statusrelay/clients/go"
)

// Job is the input of every orchestration here.
type Job struct {
	Owner string        `json:"owner"`
	Pace  time.Duration `json:"pace"` // of one step
	Round int           `json:"round,omitempty"`
}

// Labels are what of an input decides who sees the instance.
func Labels(input string) map[string]string {
	var j Job
	if json.Unmarshal([]byte(input), &j) != nil || j.Owner == "" {
		return nil
	}
	return map[string]string{"owner": j.Owner, "tenant": "contoso"}
}

// Status is the custom status of every orchestration here. The policy of `relay dev` shows customers all but the cost.
type Status struct {
	Percent      int    `json:"percent"`
	Step         string `json:"step"`
	Message      string `json:"message"`
	InternalCost int    `json:"internalCost"`
}

// Register adds all orchestrations, and the activity that they call.
func Register(r *task.TaskRegistry, work task.Activity) error {
	return errors.Join(
		r.AddOrchestratorN("Order", order), r.AddOrchestratorN("Transcode", transcode), r.AddOrchestratorN("Expense", expense),
		r.AddOrchestratorN("Monitor", monitor), r.AddOrchestratorN("Payment", payment), r.AddOrchestratorN("Trip", trip),
		r.AddOrchestratorN("Booking", booking), r.AddActivityN("Work", work),
	)
}

// flow is one run of an orchestrator's code. The code is replayed, so it sends nothing; what it hands to activities is the same each time.
type flow struct {
	ctx       *task.OrchestrationContext
	job       Job
	execution statusrelay.Execution
}

func begin(ctx *task.OrchestrationContext) (*flow, error) {
	f := &flow{ctx: ctx, execution: statusrelay.Started(ctx.CurrentTimeUtc)}
	return f, ctx.GetInput(&f.job)
}

// set sets the custom status, which the engine commits with the episode.
func (f *flow) set(s Status) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f.ctx.SetCustomStatus(string(text))
	return nil
}

// start calls an activity that takes so many steps' time.
func (f *flow) start(w Work, steps int, retry *task.RetryPolicy) task.Task {
	w.InstanceID, w.Orchestrator, w.Owner = string(f.ctx.ID), f.ctx.Name, f.job.Owner
	w.Position, w.Takes = f.execution.Next(), time.Duration(steps)*f.job.Pace
	return f.ctx.CallActivity("Work", task.WithActivityInput(w), task.WithActivityRetryPolicy(retry))
}

// step sets the status and waits for an activity.
func (f *flow) step(s Status, until, steps int) error {
	if err := f.set(s); err != nil {
		return err
	}
	return f.start(Work{Status: s, Until: until}, steps, nil).Await(nil)
}

// order is a chain of activities.
func order(ctx *task.OrchestrationContext) (any, error) {
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	steps := []Status{
		{0, "reserve", "Reserving the items", 3},
		{20, "charge", "Charging the card", 7},
		{40, "pick", "Picking from shelf B-17", 11},
		{60, "pack", "Packing two parcels", 12},
		{80, "ship", "Handing over to the carrier", 19},
	}
	for _, s := range steps {
		if err := f.step(s, s.Percent+20, 3); err != nil {
			return nil, err
		}
	}
	return map[string]any{"trackingNumber": "1Z999", "parcels": 2}, f.step(Status{100, "done", "On its way", 19}, 100, 0)
}

// transcode works on all parts at once.
func transcode(ctx *task.OrchestrationContext) (any, error) {
	const parts = 8
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	var working []task.Task
	for i := range parts {
		working = append(working, f.start(Work{Parts: parts}, 2+3*i%7, nil))
	}
	for i := range working {
		if err := f.set(partsDone(i, parts)); err != nil {
			return nil, err
		}
		if err := working[i].Await(nil); err != nil {
			return nil, err
		}
	}
	done := Status{100, "done", "The film is ready", parts}
	if err := f.set(done); err != nil {
		return nil, err
	}
	// Its parts are ordered by the clock, and so must be what comes behind them.
	return "film.mp4", f.start(Work{Status: done, Until: 100, Clock: true}, 0, nil).Await(nil)
}

// partsDone is the status of a fan-out.
func partsDone(done, parts int) Status {
	return Status{90 * done / parts, "transcode", fmt.Sprintf("%d of %d parts are done", done, parts), done}
}

// expense waits for people: for an event "decision", which is true or false, or until it has waited for long.
func expense(ctx *task.OrchestrationContext) (any, error) {
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.step(Status{10, "check", "Checking the receipts", 1}, 40, 2); err != nil {
		return nil, err
	}
	if err := f.step(Status{50, "waiting", "Waiting for the manager", 1}, 50, 0); err != nil {
		return nil, err
	}
	var approved bool
	switch err := ctx.WaitForSingleEvent("decision", 25*f.job.Pace).Await(&approved); {
	case errors.Is(err, task.ErrTaskCanceled):
		return "nobody decided", f.step(Status{100, "expired", "Nobody decided in time", 1}, 100, 0)
	case err != nil:
		return nil, err
	case !approved:
		if err := f.step(Status{90, "decided", "The manager said no", 1}, 90, 0); err != nil {
			return nil, err
		}
		return nil, errors.New("the manager said no")
	}
	if err := f.step(Status{90, "pay", "Approved, paying out", 2}, 100, 2); err != nil {
		return nil, err
	}
	return "paid", f.step(Status{100, "done", "Paid out", 2}, 100, 0)
}

// monitor looks four times, each time as a new execution: its progress starts again with each.
func monitor(ctx *task.OrchestrationContext) (any, error) {
	const rounds = 4
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.step(Status{0, "look", fmt.Sprintf("Looking, for the %d. time", f.job.Round+1), 1}, 100, 2); err != nil {
		return nil, err
	}
	if f.job.Round++; f.job.Round < rounds {
		if err := ctx.CreateTimer(f.job.Pace).Await(nil); err != nil {
			return nil, err
		}
		ctx.ContinueAsNew(f.job)
		return nil, nil
	}
	return f.job.Round, f.step(Status{100, "done", "Nothing to see", 1}, 100, 0)
}

// payment fails at each of three attempts.
func payment(ctx *task.OrchestrationContext) (any, error) {
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	s := Status{30, "charge", "Charging the card", 1}
	if err := f.set(s); err != nil {
		return nil, err
	}
	return nil, f.start(Work{Status: s, Until: 30, Fails: "the card was declined"}, 2, &task.RetryPolicy{
		MaxAttempts: 3, InitialRetryInterval: f.job.Pace, BackoffCoefficient: 1, MaxRetryInterval: f.job.Pace,
	}).Await(nil)
}

// trip has two children, which are instances of their own.
func trip(ctx *task.OrchestrationContext) (any, error) {
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.step(Status{0, "book", "Looking for a flight and a hotel", 5}, 40, 2); err != nil {
		return nil, err
	}
	var bookings []task.Task
	for _, what := range []string{"flight", "hotel"} {
		bookings = append(bookings, ctx.CallSubOrchestrator("Booking",
			task.WithSubOrchestratorInput(f.job), task.WithSubOrchestrationInstanceID(string(ctx.ID)+"-"+what)))
	}
	for _, b := range bookings {
		if err := b.Await(nil); err != nil {
			return nil, err
		}
	}
	return []string{"flight", "hotel"}, f.step(Status{100, "done", "Have a good trip", 50}, 100, 0)
}

func booking(ctx *task.OrchestrationContext) (any, error) {
	f, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.step(Status{0, "book", "Booking", 20}, 100, 5); err != nil {
		return nil, err
	}
	return "booked", f.step(Status{100, "done", "Booked", 20}, 100, 0)
}
