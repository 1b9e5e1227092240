package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/microsoft/durabletask-go/api"
	"github.com/microsoft/durabletask-go/backend"
	"github.com/microsoft/durabletask-go/task"
	"golang.org/x/sync/errgroup"

	"statusrelay/examples/durabletask/shop"
)

// Run starts an engine on a backend, plays until all has ended, and says what the engine then says of each instance.
func Run(ctx context.Context, o Options, be backend.Backend, work task.Activity) (all []Instance, err error) {
	registry := task.NewTaskRegistry()
	if err := shop.Register(registry, work); err != nil {
		return nil, err
	}
	executor := task.NewTaskExecutor(registry)
	engine := backend.NewTaskHubWorker(be,
		backend.NewOrchestrationWorker(be, executor, Quiet(), backend.WithMaxParallelism(8)),
		backend.NewActivityTaskWorker(be, executor, Quiet(), backend.WithMaxParallelism(64)), Quiet())
	if err := engine.Start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, engine.Shutdown(context.WithoutCancel(ctx))) }()

	p := &play{o, backend.NewTaskHubClient(be)}
	scenes := p.scenes()
	playing, inScene := errgroup.WithContext(ctx)
	for _, s := range scenes {
		playing.Go(func() error {
			for _, step := range s.steps {
				if err := step(inScene, s.id); err != nil {
					return fmt.Errorf("%s: %w", s.id, err)
				}
			}
			return nil
		})
	}
	if err := playing.Wait(); err != nil {
		return nil, err
	}
	for _, s := range scenes {
		for _, id := range append([]api.InstanceID{s.id}, s.children...) {
			i, err := p.instance(ctx, id)
			if err != nil {
				return nil, err
			}
			all = append(all, i)
		}
	}
	return all, nil
}

// play is the world outside of the orchestrations.
type play struct {
	Options
	backend.TaskHubClient
}

// scene is the story of one instance.
type scene struct {
	id       api.InstanceID
	steps    []step
	children []api.InstanceID
}

type step func(context.Context, api.InstanceID) error

func (p *play) scenes() (all []scene) {
	add := func(id api.InstanceID, steps ...step) { all = append(all, scene{id: id, steps: steps}) }
	for i := 1; i <= p.Count; i++ {
		id := func(kind string) api.InstanceID { return api.InstanceID(fmt.Sprintf("%s-%d", kind, i)) }
		owner := fmt.Sprintf("u-100%d", 2-i%2) // u-1001 is the customer of `relay dev`
		add(id("order"), p.start("Order", owner), p.ends)
		add(id("video"), p.start("Transcode", owner), p.ends)
		add(id("monitor"), p.start("Monitor", owner), p.ends)
		add(id("payment"), p.start("Payment", owner), p.ends)
		add(id("trip"), p.start("Trip", owner), p.ends)
		all[len(all)-1].children = []api.InstanceID{id("trip") + "-flight", id("trip") + "-hotel"}
		switch i % 3 {
		case 1:
			add(id("expense"), p.start("Expense", owner), p.reaches("waiting"), p.rest(4), p.decide(true), p.ends)
		case 2:
			add(id("expense"), p.start("Expense", owner), p.reaches("waiting"), p.rest(4), p.decide(false), p.ends)
		default: // nobody decides
			add(id("expense"), p.start("Expense", owner), p.ends)
		}
	}
	add("expense-suspended", p.start("Expense", "u-1001"), p.reaches("waiting"), p.suspend, p.becomes(api.RUNTIME_STATUS_SUSPENDED), p.rest(4),
		p.resume, p.becomes(api.RUNTIME_STATUS_RUNNING), p.decide(true), p.ends)
	// What is terminated while suspended stays suspended until it is resumed; the second one is not.
	add("expense-stopped", p.start("Expense", "u-1001"), p.reaches("waiting"), p.suspend, p.becomes(api.RUNTIME_STATUS_SUSPENDED), p.terminate, p.rest(4),
		p.resume, p.ends)
	add("expense-held", p.start("Expense", "u-1001"), p.reaches("waiting"), p.suspend, p.becomes(api.RUNTIME_STATUS_SUSPENDED), p.terminate, p.rest(4))
	// What arrives after the end is nobody's.
	add("order-stopped", p.start("Order", "u-1001"), p.reaches("charge"), p.rest(1), p.terminate, p.ends, p.terminate, p.decide(true))
	add("order-purged", p.start("Order", "u-1001"), p.ends, p.rest(4), p.purge)
	// An id can be used again, here for another customer.
	add("order-again", p.start("Order", "u-1001"), p.ends, p.purge, p.rest(2), p.start("Order", "u-1002"), p.ends)
	return all
}

func (p *play) start(orchestrator, owner string) step {
	return func(ctx context.Context, id api.InstanceID) error {
		_, err := p.ScheduleNewOrchestration(ctx, orchestrator, api.WithInstanceID(id), api.WithInput(shop.Job{Owner: owner, Pace: p.Pace}))
		return err
	}
}

func (p *play) decide(approved bool) step {
	return func(ctx context.Context, id api.InstanceID) error {
		return p.RaiseEvent(ctx, id, "decision", api.WithEventPayload(approved))
	}
}

func (p *play) suspend(ctx context.Context, id api.InstanceID) error {
	return p.SuspendOrchestration(ctx, id, "an audit")
}

func (p *play) resume(ctx context.Context, id api.InstanceID) error {
	return p.ResumeOrchestration(ctx, id, "nothing was found")
}

func (p *play) terminate(ctx context.Context, id api.InstanceID) error {
	return p.TerminateOrchestration(ctx, id, api.WithOutput("somebody changed their mind"))
}

func (p *play) purge(ctx context.Context, id api.InstanceID) error {
	return p.PurgeOrchestrationState(ctx, id)
}

func (p *play) ends(ctx context.Context, id api.InstanceID) error {
	return p.until(ctx, func() (bool, error) {
		m, err := p.FetchOrchestrationMetadata(ctx, id)
		return err == nil && m.IsComplete(), err
	})
}

func (p *play) becomes(status api.OrchestrationStatus) step {
	return func(ctx context.Context, id api.InstanceID) error {
		return p.until(ctx, func() (bool, error) {
			m, err := p.FetchOrchestrationMetadata(ctx, id)
			return err == nil && m.RuntimeStatus == status, err
		})
	}
}

// reaches waits for a step of the orchestration.
func (p *play) reaches(name string) step {
	return func(ctx context.Context, id api.InstanceID) error {
		return p.until(ctx, func() (bool, error) {
			m, err := p.FetchOrchestrationMetadata(ctx, id)
			if err != nil || m.SerializedCustomStatus == "" {
				return false, err
			}
			var s shop.Status
			err = json.Unmarshal([]byte(m.SerializedCustomStatus), &s)
			return s.Step == name, err
		})
	}
}

// until asks the engine again and again, as those do who have no relay.
func (p *play) until(ctx context.Context, happened func() (bool, error)) error {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		if ok, err := happened(); ok || err != nil {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rest waits for about n steps.
func (p *play) rest(n float64) step {
	return func(ctx context.Context, _ api.InstanceID) error {
		t := time.NewTimer(time.Duration(n * float64(p.Pace)))
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// instance is what the engine says of one.
func (p *play) instance(ctx context.Context, id api.InstanceID) (Instance, error) {
	m, err := p.FetchOrchestrationMetadata(ctx, id)
	if errors.Is(err, api.ErrInstanceNotFound) {
		return Instance{ID: string(id), Purged: true}, nil
	}
	if err != nil {
		return Instance{}, err
	}
	i := Instance{
		ID: string(id), Name: m.Name, Owner: shop.Labels(m.SerializedInput)["owner"], RuntimeStatus: m.RuntimeStatus.String(),
		CustomStatus: m.SerializedCustomStatus, Output: m.SerializedOutput,
	}
	if f := m.FailureDetails; f != nil {
		i.Failure = f.GetErrorMessage()
	}
	return i, nil
}

// Quiet is a logger of the engine that says errors only: what comes too late for an instance, for example, is wanted here.
func Quiet() backend.Logger { return quiet{backend.DefaultLogger()} }

type quiet struct{ backend.Logger }

func (quiet) Debug(...any)          {}
func (quiet) Debugf(string, ...any) {}
func (quiet) Info(...any)           {}
func (quiet) Infof(string, ...any)  {}
func (quiet) Warn(...any)           {}
func (quiet) Warnf(string, ...any)  {}
