package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/doctor"
	"statusrelay/internal/notifier"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
)

// doctorConfig is the configuration of serve, and what is on the other side of the topic.
type doctorConfig struct {
	notifier.Config
	Subscription string `koanf:"subscription" usage:"the topic's subscription, which all relays share"`
	RelayConfig
}

// Validate leaves that to the examination, which goes on past mistakes that do not matter here.
func (doctorConfig) Validate() error { return nil }

func diagnose() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what keeps updates from arriving",
		Long: `Follows the way of an update: configuration, connection, topic, subscription, and, with --relay, a relay that shows it.
Each check says what it has found and what to do; what the credential does not let it see is reported as not checked.

It publishes a probe, an instance of its own named doctor-…, and purges it; every subscription of the topic gets both. --no-probe leaves that out.
The exit code is 1 when a check has failed. docs/doctor.md says more about each.`,
		Example: `  notifier doctor
  notifier doctor --relay https://status.example.com --output json`,
		Args: cobra.NoArgs,
	}
	set := settings.Bind(cmd, doctorConfig{Config: notifier.Defaults(), Subscription: "relay"})
	flags := cmd.Flags()
	hub := flags.String("hub", "", "hub of the probe; by default that of updates that name none")
	name := flags.String("name", "", "orchestrator name of the probe, where the policy goes by it")
	labels := flags.StringToString("label", nil, "label of the probe as name=value, where the policy goes by it; may be repeated")
	quiet := flags.Bool("no-probe", false, "publish nothing")
	wait := flags.Duration("wait", 15*time.Second, "how long the probe may take to the relay")
	management := flags.String("management", "", "URL of the namespace's administration API, if it is not where it always is")
	form := bindForm(cmd, "form of the report: text, or json, which is one document", nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, mistakes := set.Load()
		if c.Relay != "" {
			mistakes = errors.Join(mistakes, c.check())
		}
		probe := status.Update{Hub: cmp.Or(*hub, c.DefaultHub), InstanceID: "doctor", Name: *name, Labels: *labels, Kind: status.KindSnapshot}
		mistakes = errors.Join(mistakes, probe.Validate(time.Now()))

		r := &report{printer: form.printer(cmd)}
		for _, f := range c.Examine(cmd.Context(), mistakes) {
			r.add(f)
		}
		if mistakes == nil && c.ServiceBus.Validate() == nil {
			bus := c.ServiceBus
			doctor.Run(cmd.Context(), doctor.Options{
				ServiceBus: servicebus.Options{
					ConnectionString: bus.ConnectionString.Reveal(), Namespace: bus.Namespace, Topic: bus.Topic, Subscription: c.Subscription, Management: *management,
				},
				Hub: probe.Hub, Name: *name, Labels: *labels, NoProbe: *quiet,
				Relay: c.Relay, Token: c.options(status.Key{}).Token, Wait: *wait,
				Report: r.add,
			})
		}
		return r.end()
	}
	return cmd
}

// report prints findings: as text when they are made, as JSON in the end.
type report struct {
	printer  *printer
	findings []doctor.Finding
}

func (r *report) add(f doctor.Finding) {
	r.findings = append(r.findings, f)
	if r.printer.json {
		return
	}
	r.printer.text("%-4s  %-19s  %s\n", f.Outcome, f.Check, f.Detail)
	if f.Remedy != "" {
		r.printer.text("%-4s  %-19s  -> %s\n", "", "", f.Remedy)
	}
}

func (r *report) end() error {
	if r.printer.json {
		r.printer.line(struct {
			OK     bool             `json:"ok"`
			Checks []doctor.Finding `json:"checks"`
		}{doctor.Healthy(r.findings), r.findings})
	}
	failed := len(slices.DeleteFunc(slices.Clone(r.findings), func(f doctor.Finding) bool { return f.Outcome != doctor.Fail }))
	if failed > 0 {
		return errors.Join(fmt.Errorf("%d of %d checks have failed", failed, len(r.findings)), r.printer.err)
	}
	return r.printer.err
}
