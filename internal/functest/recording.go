package functest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// A Step is one commit of a recorded engine: an update as its tap has published it,
// which has the full state.
type Step struct {
	Hub, InstanceID, Name, Kind, RuntimeStatus string
	Generation, Sequence                       int64
	CustomStatus, Output                       json.RawMessage
	Failure                                    *struct{ Type, Message string }
	CreatedTime, LastUpdatedTime               time.Time
}

// ReadRecording reads a recording of a tap, one CloudEvent a line.
func ReadRecording(path string) ([]Step, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var steps []Step
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Data Step }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, len(steps)+1, err)
		}
		steps = append(steps, event.Data)
	}
	return steps, lines.Err()
}

// Apply lets the app go one step on. Where the recorded publishers overtook each
// other the engine did not: what is older than what the app has does nothing.
func (a *App) Apply(step Step) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.instances[step.InstanceID]
	switch {
	case step.Generation < s.generation:
		return
	case step.Kind == "purged":
		delete(a.instances, step.InstanceID)
		return
	case step.Generation > s.generation:
		s = State{}
	case step.Sequence < s.sequence:
		return
	}
	s.generation, s.sequence = step.Generation, step.Sequence
	s.InstanceID, s.Name, s.RuntimeStatus = step.InstanceID, step.Name, step.RuntimeStatus
	s.CreatedTime, s.LastUpdatedTime, s.Output = step.CreatedTime, step.LastUpdatedTime, step.Output
	if step.CustomStatus != nil { // absent: as it was
		s.CustomStatus = step.CustomStatus
	}
	if step.Failure != nil {
		s.Output, _ = json.Marshal(step.Failure.Message) // a string
	}
	a.instances[step.InstanceID] = s
}
