package statustap_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/microsoft/durabletask-go/api"
	"github.com/microsoft/durabletask-go/backend"
	"github.com/microsoft/durabletask-go/backend/sqlite"
	"github.com/microsoft/durabletask-go/task"

	statusrelay "statusrelay/clients/go"
	"statusrelay/examples/durabletask/demo"
	"statusrelay/examples/durabletask/statustap"
)

// engine is a tapped one, that works when it is told to: one work item after the other.
type engine struct {
	*testing.T
	backend.TaskHubClient
	tap    *statustap.Tap
	worker backend.TaskWorker

	mu        sync.Mutex
	published []statusrelay.Update
	fails     error // what Publish returns
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{T: t}
	e.tap = &statustap.Tap{
		Backend: sqlite.NewSqliteBackend(sqlite.NewSqliteOptions(""), demo.Quiet()), Hub: "h", Publish: e.publish,
		Labels: func(input string) map[string]string { return map[string]string{"owner": strings.Trim(input, `"`)} },
		Log:    slog.New(slog.DiscardHandler),
	}
	e.ok(e.tap.CreateTaskHub(t.Context()))
	e.TaskHubClient = backend.NewTaskHubClient(e.tap)
	r := task.NewTaskRegistry()
	e.ok(r.AddOrchestratorN("Wait", func(ctx *task.OrchestrationContext) (any, error) {
		ctx.SetCustomStatus(`{"step":"waiting"}`)
		var said string
		if err := ctx.WaitForSingleEvent("go", -1).Await(&said); err != nil {
			return nil, err
		}
		ctx.SetCustomStatus(said)
		if said == "fail" {
			return nil, errors.New("as told")
		}
		return said, nil
	}))
	e.worker = backend.NewOrchestrationWorker(e.tap, task.NewTaskExecutor(r), demo.Quiet())
	return e
}

func (e *engine) publish(_ context.Context, updates ...statusrelay.Update) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.published = append(e.published, updates...)
	return e.fails
}

func (e *engine) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *engine) start(id api.InstanceID, options ...api.NewOrchestrationOptions) error {
	_, err := e.ScheduleNewOrchestration(e.Context(), "Wait", append(options, api.WithInstanceID(id), api.WithInput("u-1"))...)
	return err
}

// work works until nothing is left to do.
func (e *engine) work() {
	e.Helper()
	for {
		found, err := e.worker.ProcessNext(e.Context()) // one at a time: it waits for the one before
		e.ok(err)
		if !found {
			return
		}
	}
}

// took takes what was published since.
func (e *engine) took() []statusrelay.Update {
	e.mu.Lock()
	defer e.mu.Unlock()
	updates := e.published
	e.published = nil
	return updates
}

// says compares what was published since with lines.
func (e *engine) says(want ...string) (updates []statusrelay.Update) {
	e.Helper()
	updates = e.took()
	var got []string
	for _, u := range updates {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %v", u.InstanceID, u.Kind, u.RuntimeStatus, text(u.CustomStatus), text(u.Output))))
	}
	if !slices.Equal(got, want) {
		e.Errorf("published %q, want %q", got, want)
	}
	return updates
}

func text(v any) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%s", v)
}

func TestEachCommitIsPublished(t *testing.T) {
	e := newEngine(t)
	e.ok(e.start("i"))
	pending := e.says("i snapshot Pending - -")[0]
	e.work()
	running := e.says(`i snapshot Running {"step":"waiting"} -`)[0]
	e.ok(e.RaiseEvent(t.Context(), "i", "go", api.WithEventPayload("fail")))
	e.work()
	failed := e.says("i snapshot Failed fail -")[0]
	if failed.Failure == nil || failed.Failure.Message != "as told" {
		t.Errorf("failure %+v", failed.Failure)
	}
	m, err := e.FetchOrchestrationMetadata(t.Context(), "i")
	e.ok(err)
	last := int64(0)
	for _, u := range []statusrelay.Update{pending, running, failed} {
		if u.Hub != "h" || u.Name != "Wait" || u.Labels["owner"] != "u-1" || u.ExecutionID == "" || u.Generation != m.CreatedAt.UnixMilli() || u.Sequence <= last {
			t.Errorf("got %+v behind %d", u, last)
		}
		last = u.Sequence
	}
	e.ok(e.PurgeOrchestrationState(t.Context(), "i"))
	if purged := e.says("i purged  - -")[0]; purged.Generation != failed.Generation {
		t.Errorf("purged generation %d, want %d", purged.Generation, failed.Generation)
	}
}

// What the orchestrator reads as the time on its first line is the generation, and Pending gives way to any run.
func TestLifecycleCountsFromTheFirstEpisode(t *testing.T) {
	e := newEngine(t)
	e.tap.LifecycleOnly = true
	e.ok(e.start("i"))
	pending := e.says("i lifecycle Pending - -")[0]
	for created := time.Now().UnixMilli(); time.Now().UnixMilli() == created; {
		runtime.Gosched() // the first episode has another start than the instance
	}
	e.work()
	running := e.says("i lifecycle Running - -")[0]
	s, err := e.tap.GetOrchestrationRuntimeState(t.Context(), &backend.OrchestrationWorkItem{InstanceID: "i"})
	e.ok(err)
	if first := s.OldEvents()[0]; first.GetOrchestratorStarted() == nil || running.Generation != first.GetTimestamp().AsTime().UnixMilli() {
		t.Errorf("generation %d, first event %v", running.Generation, first)
	}
	if pending.Generation > running.Generation-time.Minute.Milliseconds() {
		t.Errorf("Pending's generation %d is not well before %d", pending.Generation, running.Generation)
	}
}

func TestWhatIsNotCommittedIsNotPublished(t *testing.T) {
	e := newEngine(t)
	e.ok(e.start("i"))
	e.took()
	if err := e.start("i"); !errors.Is(err, api.ErrDuplicateInstance) {
		t.Errorf("got %v", err)
	}
	// An id-reuse policy that keeps the instance that is there creates none, and says so to nobody.
	keep := api.WithOrchestrationIdReusePolicy(&api.OrchestrationIdReusePolicy{
		Action: api.REUSE_ID_ACTION_IGNORE, OperationStatus: []api.OrchestrationStatus{api.RUNTIME_STATUS_PENDING},
	})
	e.ok(e.start("i", keep))
	// The work item's lock is lost.
	wi, err := e.tap.GetOrchestrationWorkItem(t.Context())
	e.ok(err)
	wi.State, err = e.tap.GetOrchestrationRuntimeState(t.Context(), wi)
	e.ok(err)
	for _, event := range wi.NewEvents {
		e.ok(wi.State.AddEvent(event))
	}
	wi.LockedBy = "another"
	if err := e.tap.CompleteOrchestrationWorkItem(t.Context(), wi); err == nil {
		t.Error("the work item of another worker was completed")
	}
	if err := e.PurgeOrchestrationState(t.Context(), "i"); err == nil {
		t.Error("a running instance was purged")
	}
	e.says()
}

// Events that come too late make work items that change nothing.
func TestWhatComesAfterTheEndIsNotPublished(t *testing.T) {
	e := newEngine(t)
	e.ok(e.start("i"))
	e.work()
	e.ok(e.RaiseEvent(t.Context(), "i", "go", api.WithEventPayload("well")))
	e.work()
	e.took()
	e.ok(e.TerminateOrchestration(t.Context(), "i"))
	e.ok(e.RaiseEvent(t.Context(), "i", "go"))
	e.work()
	e.says()
}

// The engine does nothing with an instance that is terminated while suspended, until that is resumed.
func TestTerminatedWhileSuspendedIsSuspendedUntilResumed(t *testing.T) {
	e := newEngine(t)
	e.ok(e.start("i"))
	e.work()
	e.took()
	e.ok(e.SuspendOrchestration(t.Context(), "i", ""))
	e.work()
	e.says(`i snapshot Suspended {"step":"waiting"} -`)
	e.ok(e.TerminateOrchestration(t.Context(), "i", api.WithRawOutput("by hand, not JSON")))
	e.work()
	e.says(`i snapshot Suspended {"step":"waiting"} -`)
	e.ok(e.ResumeOrchestration(t.Context(), "i", ""))
	e.work()
	e.says(`i snapshot Terminated {"step":"waiting"} by hand, not JSON`)
}

// The broker is no part of the engine.
func TestEngineWorksWhenNothingCanBePublished(t *testing.T) {
	e := newEngine(t)
	e.fails = errors.New("no broker")
	e.ok(e.start("i"))
	e.work()
	e.ok(e.RaiseEvent(t.Context(), "i", "go", api.WithEventPayload("well")))
	e.work()
	m, err := e.FetchOrchestrationMetadata(t.Context(), "i")
	e.ok(err)
	if m.RuntimeStatus != api.RUNTIME_STATUS_COMPLETED {
		t.Errorf("got %v", m.RuntimeStatus)
	}
}
