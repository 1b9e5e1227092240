// Package statustap tells a relay what becomes of orchestrations, from within the engine that runs them (durabletask-go). Nothing is polled and no
// orchestration is changed: a [Tap] stands before the engine's backend and publishes what the backend has committed.
//
// It promises that nothing is published that was not committed, and that the relay's record of an instance ends as the engine's own,
// though workers overtake each other. What it does not promise: a crash between a commit and its update loses the update. The instance's next
// one repairs that, but for the last one there is none.
package statustap

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/microsoft/durabletask-go/api"
	"github.com/microsoft/durabletask-go/backend"

	statusrelay "statusrelay/clients/go"
)

// Tap is a backend. All fields but Labels are required.
type Tap struct {
	backend.Backend // whose changes are published

	Hub     string
	Publish func(ctx context.Context, updates ...statusrelay.Update) error
	Labels  func(input string) map[string]string // of an instance, from its input in JSON; nothing else of the input is published
	Log     *slog.Logger                         // what could not be published

	// LifecycleOnly leaves the custom status to activities that report it themselves. Both then count from the same moment: the
	// start of the first episode, which orchestrators read as CurrentTimeUtc on their first line.
	LifecycleOnly bool
}

// CreateOrchestrationInstance publishes Pending.
func (t *Tap) CreateOrchestrationInstance(ctx context.Context, e *backend.HistoryEvent, opts ...backend.OrchestrationIdReusePolicyOptions) error {
	if err := t.Backend.CreateOrchestrationInstance(ctx, e, opts...); err != nil {
		return err
	}
	id := api.InstanceID(e.GetExecutionStarted().GetOrchestrationInstance().GetInstanceId())
	// With a policy that keeps the instance that is there, nothing was created.
	m, err := t.GetOrchestrationMetadata(ctx, id)
	if err != nil || !m.CreatedAt.Equal(e.GetTimestamp().AsTime()) {
		return nil
	}
	u := t.update(id, []*backend.HistoryEvent{e})
	u.RuntimeStatus = statusrelay.Pending
	if t.LifecycleOnly {
		// The first episode is yet to come, on a machine whose clock may be behind this one's. So Pending is a generation of its own, which any
		// run replaces: leaving the generation out would lend its labels to whatever run is there when it arrives.
		u.Generation -= time.Minute.Milliseconds()
	}
	t.publish(ctx, u)
	return nil
}

// CompleteOrchestrationWorkItem publishes what an episode has made of an instance.
func (t *Tap) CompleteOrchestrationWorkItem(ctx context.Context, wi *backend.OrchestrationWorkItem) error {
	if err := t.Backend.CompleteOrchestrationWorkItem(ctx, wi); err != nil {
		return err // not committed: it did not happen
	}
	if len(wi.State.NewEvents()) == 0 {
		return nil // it came too late for an instance that had ended
	}
	u := t.update(wi.InstanceID, slices.Concat(wi.State.OldEvents(), wi.State.NewEvents()))
	u.RuntimeStatus = runtimeStatus(wi.State.RuntimeStatus())
	if custom := wi.State.CustomStatus; custom != nil && !t.LifecycleOnly {
		u.CustomStatus = statusrelay.Cleared
		if custom.GetValue() != "" {
			u.CustomStatus = value(custom.GetValue())
		}
	}
	t.publish(ctx, u)
	return nil
}

// PurgeOrchestrationState publishes that an instance is gone.
func (t *Tap) PurgeOrchestrationState(ctx context.Context, id api.InstanceID) error {
	// Which run that is must be asked before.
	s, err := t.GetOrchestrationRuntimeState(ctx, &backend.OrchestrationWorkItem{InstanceID: id})
	if err != nil {
		return fmt.Errorf("reading what is to be purged: %w", err)
	}
	if err := t.Backend.PurgeOrchestrationState(ctx, id); err != nil {
		return err
	}
	u := t.update(id, s.OldEvents())
	t.publish(ctx, statusrelay.Update{Hub: u.Hub, InstanceID: u.InstanceID, Position: u.Position, Kind: statusrelay.KindPurged})
	return nil
}

// update is what a history says. It only ever grows within an execution, so that its length is the position.
func (t *Tap) update(id api.InstanceID, history []*backend.HistoryEvent) statusrelay.Update {
	u := statusrelay.Update{Hub: t.Hub, InstanceID: string(id), Kind: statusrelay.KindSnapshot}
	if t.LifecycleOnly {
		u.Kind = statusrelay.KindLifecycle
	}
	u.Sequence = int64(len(history))
	for i, e := range history {
		at := e.GetTimestamp().AsTime()
		if i == 0 && t.LifecycleOnly {
			u.Generation = at.UnixMilli() // the first event is OrchestratorStarted
		}
		u.LastUpdatedTime = at
		if start := e.GetExecutionStarted(); start != nil {
			u.Name, u.CreatedTime = start.GetName(), at
			u.ExecutionID = start.GetOrchestrationInstance().GetExecutionId().GetValue()
			u.ParentInstanceID = start.GetParentInstance().GetOrchestrationInstance().GetInstanceId()
			if t.Labels != nil {
				u.Labels = t.Labels(start.GetInput().GetValue())
			}
			if !t.LifecycleOnly {
				u.Generation = at.UnixMilli() // which Pending has, too
			}
		}
		if end := e.GetExecutionCompleted(); end != nil {
			u.Output = value(end.GetResult().GetValue())
			if f := end.GetFailureDetails(); f != nil {
				u.Failure = &statusrelay.Failure{Type: f.GetErrorType(), Message: f.GetErrorMessage()}
			}
		}
	}
	return u
}

// publish waits for the broker, so that a slow one slows the engine instead of filling memory. What cannot be published is said and let go: it is
// committed whatever becomes of its update.
func (t *Tap) publish(ctx context.Context, u statusrelay.Update) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // an engine that stops says how it left things
	defer cancel()
	if err := t.Publish(ctx, u); err != nil {
		t.Log.ErrorContext(ctx, "status not published", "instanceId", u.InstanceID, "error", err)
	}
}

// value is what the engine keeps as text: JSON, or what somebody wrote by hand.
func value(text string) any {
	switch {
	case text == "":
		return nil
	case json.Valid([]byte(text)):
		return json.RawMessage(text)
	}
	return text
}

func runtimeStatus(s api.OrchestrationStatus) statusrelay.RuntimeStatus {
	switch s {
	case api.RUNTIME_STATUS_COMPLETED:
		return statusrelay.Completed
	case api.RUNTIME_STATUS_CONTINUED_AS_NEW:
		return statusrelay.ContinuedAsNew
	case api.RUNTIME_STATUS_FAILED:
		return statusrelay.Failed
	case api.RUNTIME_STATUS_CANCELED:
		return statusrelay.Canceled
	case api.RUNTIME_STATUS_TERMINATED:
		return statusrelay.Terminated
	case api.RUNTIME_STATUS_PENDING:
		return statusrelay.Pending
	case api.RUNTIME_STATUS_SUSPENDED:
		return statusrelay.Suspended
	default:
		return statusrelay.Running
	}
}
