package wsapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
)

// shortPubsub says a frame of Web PubSub in few words.
func shortPubsub(frame []byte) string {
	var f struct {
		Type, Event, Message, Group string
		AckID                       json.RawMessage
		Success                     bool
		Error                       struct{ Name string }
		Data                        struct {
			Gone         bool
			Version      int64
			CustomStatus json.RawMessage
		}
	}
	if err := json.Unmarshal(frame, &f); err != nil {
		return "not JSON: " + string(frame)
	}
	words := []string{f.Type}
	switch f.Type {
	case "system":
		words = append(words, f.Event)
		if f.Message != "" {
			words = append(words, "("+f.Message+")")
		}
	case "ack":
		words = append(words, string(f.AckID))
		if !f.Success {
			words = append(words, f.Error.Name)
		}
	case "message":
		words = append(words, f.Group, fmt.Sprint(f.Data.Version))
		if f.Data.Gone {
			words = append(words, "gone")
		} else {
			words = append(words, string(f.Data.CustomStatus))
		}
	}
	return strings.Join(words, " ")
}
