package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"statusrelay/internal/status"
	"statusrelay/internal/watcher"
)

// A form is the flag --output: how results are written.
type form struct {
	json  bool
	other *string // of send: takes what is neither word, the output of an orchestration; nil: nothing else may stand there
}

func bindForm(cmd *cobra.Command, usage string, other *string) *form {
	f := &form{other: other}
	cmd.Flags().Var(f, "output", usage)
	complete(cmd, "output", "text", "json")
	return f
}

// String is the flag's default.
func (f *form) String() string { return "text" }

// Type is what help calls its values.
func (f *form) Type() string { return "form" }

// Set takes a value.
func (f *form) Set(text string) error {
	switch {
	case text == "text", text == "json": // neither of which is JSON
		f.json = text == "json"
	case f.other == nil || text == "":
		return errors.New("want text or json")
	default:
		*f.other = text
	}
	return nil
}

// complete makes the shell complete a flag with one of the values.
func complete(cmd *cobra.Command, flag string, values ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag
	}
}

// A printer writes results to standard output and talks on standard error.
type printer struct {
	json bool
	out  io.Writer
	talk func(format string, args ...any)
	err  error // of writing: nobody reads any more
}

func (f *form) printer(cmd *cobra.Command) *printer {
	return &printer{json: f.json, out: cmd.OutOrStdout(), talk: progressLine(cmd.ErrOrStderr())}
}

// line writes a result as JSON.
func (p *printer) line(result any) {
	b, err := json.Marshal(result)
	if err == nil {
		_, err = p.out.Write(append(b, '\n'))
	}
	p.err = errors.Join(p.err, err)
}

// refused reports an update that was not published, by its number, counted from 1. Its index is counted as in the answers of
// POST /v1/updates.
func (p *printer) refused(number int, err error) {
	if !p.json {
		p.talk("refused update %d: %v\n", number, err)
		return
	}
	result := struct {
		Type   string        `json:"type"`
		Index  int           `json:"index"`
		Reason status.Reason `json:"reason,omitempty"`
		Field  string        `json:"field,omitempty"`
		Detail string        `json:"detail"`
	}{Type: "refused", Index: number - 1, Detail: err.Error()}
	var invalid *status.InvalidError
	if errors.As(err, &invalid) {
		result.Reason, result.Field, result.Detail = invalid.Reason, invalid.Field, invalid.Detail
	}
	p.line(result)
}

// progress tells who waits at a terminal how far it is.
func (p *printer) progress(sent, refused int) {
	if !p.json {
		p.talk("%d published, %d refused", sent, refused)
	}
}

// sent reports what became of all updates; err is why not all of them were tried.
func (p *printer) sent(accepted, refused int, err error) {
	if !p.json {
		p.talk("%d published, %d refused\n", accepted, refused)
		return
	}
	result := struct {
		Type     string `json:"type"`
		Accepted int    `json:"accepted"`
		Refused  int    `json:"refused"`
		Error    string `json:"error,omitempty"`
	}{Type: "sent", Accepted: accepted, Refused: refused}
	if err != nil {
		result.Error = err.Error()
	}
	p.line(result)
}

// change writes what a watcher was told, as JSON in the form of the frames of a WebSocket.
func (p *printer) change(c watcher.Change) {
	if p.json {
		result := struct {
			Type       string          `json:"type"`
			Hub        string          `json:"hub"`
			InstanceID string          `json:"instanceId"`
			Version    int64           `json:"version"`
			Status     json.RawMessage `json:"status,omitempty"`
		}{"status", c.Key.Hub, c.Key.InstanceID, c.Version, c.View}
		if c.Gone {
			result.Type = "gone"
		}
		p.line(result)
		return
	}
	p.text("%s\n", text(c))
}

// text writes a result as text.
func (p *printer) text(format string, args ...any) {
	_, err := fmt.Fprintf(p.out, format, args...)
	p.err = errors.Join(p.err, err)
}

// text is a change on one line.
func text(c watcher.Change) string {
	if c.Gone {
		return c.Key.String() + " is gone"
	}
	var view struct {
		LastUpdatedTime               string
		CustomStatus, Output, Failure json.RawMessage
		Stale                         bool
	}
	words := []string{c.Key.String(), string(c.RuntimeStatus)}
	if json.Unmarshal(c.View, &view) == nil {
		if view.LastUpdatedTime != "" {
			words = append([]string{view.LastUpdatedTime}, words...)
		}
		if view.Stale {
			words = append(words, "(stale)")
		}
		if len(view.CustomStatus) > 0 && string(view.CustomStatus) != "null" {
			words = append(words, string(view.CustomStatus))
		}
		if len(view.Output) > 0 {
			words = append(words, "output="+string(view.Output))
		}
		if len(view.Failure) > 0 {
			words = append(words, "failure="+string(view.Failure))
		}
	}
	return visible(strings.Join(words, " "))
}

// visible escapes, as JSON does, what a terminal might obey.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// progressLine returns how to report: on a terminal, a text without a line end
// is replaced by the next one; elsewhere it is left out.
func progressLine(w io.Writer) func(format string, args ...any) {
	terminal := false
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return func(format string, args ...any) {
		switch {
		case terminal:
			_, _ = fmt.Fprintf(w, "\r\x1b[K"+format, args...)
		case strings.HasSuffix(format, "\n"):
			_, _ = fmt.Fprintf(w, format, args...)
		}
	}
}
