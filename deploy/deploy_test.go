// Package deploy_test checks everything in this folder without a container
// engine: the files against their formats, and all of them against the programs'
// own configuration.
package deploy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/spf13/cobra"

	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/storetest"
)

const (
	dockerfile  = "docker/Dockerfile"
	composeFile = "compose/compose.yaml"
	exampleEnv  = "compose/.env.example"
	topology    = "compose/config.json"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Build's own linter, the one behind "docker build --check".
func lint(t *testing.T, content []byte) []string {
	t.Helper()
	source := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", content)
	source.Definition = &llb.Definition{} // must not be nil, or the linter panics
	results, err := dockerfile2llb.DockerfileLint(t.Context(), content, dockerfile2llb.ConvertOpt{
		// scratch is the one base that needs no registry to be looked at.
		Config:    dockerui.Config{BuildArgs: map[string]string{"GO_IMAGE": "scratch"}},
		SourceMap: source,
	})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	if results.Error != nil {
		found = append(found, results.Error.Message)
	}
	for _, w := range results.Warnings {
		found = append(found, w.RuleName+": "+w.Detail)
	}
	return found
}

func TestDockerfileHasNothingThatItsLinterObjectsTo(t *testing.T) {
	content := read(t, dockerfile)
	for _, finding := range lint(t, content) {
		t.Error(finding)
	}
	for _, bad := range []string{"ENV API_TOKEN=x\n", "CMD /relay serve\n", "COPY --from=nowhere a b\n", "RUNN x\n"} {
		if len(lint(t, append(bytes.Clone(content), bad...))) == 0 {
			t.Errorf("the linter finds nothing wrong with %q: it does not work", bad)
		}
	}
}

func TestImagesRunUnprivilegedAndHoldNothingButTheProgram(t *testing.T) {
	final := string(read(t, dockerfile))
	final = final[strings.Index(final, "FROM scratch"):]
	if !strings.Contains(final, "USER 65532:65532\n") {
		t.Error("does not run as user 65532")
	}
	if got := regexp.MustCompile(`(?m)^(RUN|ADD|SHELL)\b.*`).FindAllString(final, -1); got != nil {
		t.Errorf("the final stages contain %q", got)
	}
	copies := regexp.MustCompile(`(?m)^COPY --from=build (\S+)`).FindAllStringSubmatch(final, -1)
	var sources []string
	for _, c := range copies {
		sources = append(sources, c[1])
	}
	want := []string{"/etc/ssl/certs/ca-certificates.crt", "/out/notifier", "/out/relay"}
	if !slices.Equal(sources, want) {
		t.Errorf("copies %q, want %q", sources, want)
	}
}

// project loads the compose file with the variables of .env.example and those
// that a user has to set.
func project(t *testing.T, path string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{path},
		cli.WithEnvFiles(exampleEnv), cli.WithDotEnv,
		cli.WithEnv([]string{"ACCEPT_EULA=Y", "MSSQL_SA_PASSWORD=Example-Passw0rd"}))
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(context.Background())
}

func compose(t *testing.T) *types.Project {
	t.Helper()
	p, err := project(t, composeFile)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestComposeFileIsValid(t *testing.T) {
	p := compose(t)
	if got := p.ServiceNames(); !slices.Equal(slices.Sorted(slices.Values(got)), []string{"notifier", "redis", "relay", "servicebus", "sql"}) {
		t.Errorf("got services %q", got)
	}
	for name, s := range p.Services {
		if s.Build == nil && (!strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest")) {
			t.Errorf("%s: the version of %q is left to chance", name, s.Image)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, port.Published)
			}
			if port.Target == 9090 || port.Target == 9091 {
				t.Errorf("%s publishes its private port", name)
			}
		}
		for _, v := range s.Volumes {
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name, target := range map[string]string{"relay": "relay", "notifier": "notifier"} {
		b := p.Services[name].Build
		if b.Target != target {
			t.Errorf("%s: builds %s", name, b.Target)
		}
		if _, err := os.Stat(b.Context + "/" + b.Dockerfile); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestComposeFileWithAMistakeIsRefused(t *testing.T) {
	content := string(read(t, composeFile))
	for _, change := range [][2]string{{"healthcheck:", "health_check:"}, {"depends_on:\n      redis:", "depends_on:\n      nobody:"}, {"}\n      servicebus:", "\n"}} {
		changed := strings.Replace(content, change[0], change[1], 1)
		path := t.TempDir() + "/compose.yaml"
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := project(t, path); changed == content || err == nil {
			t.Errorf("%q instead of %q was accepted", change[1], change[0])
		}
	}
}

func TestEveryVariableOfComposeIsInTheExample(t *testing.T) {
	example := string(read(t, exampleEnv))
	used := map[string]bool{}
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+)`).FindAllStringSubmatch(string(read(t, composeFile)), -1) {
		used[m[1]] = true
	}
	for name := range used {
		if !regexp.MustCompile(`(?m)^` + name + `=`).MatchString(example) {
			t.Errorf("%s is not in %s", name, exampleEnv)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^([A-Z_]+)=`).FindAllStringSubmatch(example, -1) {
		if !used[m[1]] {
			t.Errorf("%s in %s is used by nothing", m[1], exampleEnv)
		}
	}
}

// start runs the command with which compose starts Redis, here: its paths are
// changed to those of this machine.
func start(t *testing.T, s types.ServiceConfig, password string) (addr string) {
	t.Helper()
	dir := t.TempDir()
	file := dir + "/redis-password"
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr = storetest.FreeAddr(t)
	mount := s.Volumes[0]
	command := []string{s.Command[0], strings.Replace(s.Command[1], mount.Target, mount.Source, 1)}
	command = append(append(command, s.Command[2:]...), "--bind", "127.0.0.1", "--port", addr[strings.LastIndex(addr, ":")+1:], "--dir", dir)
	server := exec.Command(command[0], command[1:]...)
	server.Env = []string{"PATH=" + os.Getenv("PATH"), "REDIS_PASSWORD_FILE=" + file, "REDIS_RUN=" + dir}
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	var output bytes.Buffer
	server.Stdout, server.Stderr = &output, &output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("redis-server: %s", &output)
		}
	})
	return addr
}

// healthy runs the health check of compose, here.
func healthy(t *testing.T, s types.ServiceConfig, addr, password string) error {
	t.Helper()
	file := t.TempDir() + "/redis-password"
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.HealthCheck.Test[0] != "CMD-SHELL" {
		t.Fatalf("the health check is %q", s.HealthCheck.Test)
	}
	text := strings.Replace(s.HealthCheck.Test[1], "redis-cli ", "redis-cli -p "+addr[strings.LastIndex(addr, ":")+1:]+" ", 1)
	check := exec.CommandContext(t.Context(), "sh", "-c", text)
	check.Env = []string{"PATH=" + os.Getenv("PATH"), "REDIS_PASSWORD_FILE=" + file}
	return check.Run()
}

// Redis is open to nobody but who has the password in the secret's file, which the
// relay reads as well.
func TestRedisInComposeWantsThePassword(t *testing.T) {
	p := compose(t)
	server, relays := p.Services["redis"], p.Services["relay"]
	for _, s := range []types.ServiceConfig{server, relays} {
		if len(s.Secrets) != 1 || s.Secrets[0].Source != "redis-password" {
			t.Errorf("%s: has the secrets %v", s.Name, s.Secrets)
		}
	}
	want := "/run/secrets/" + server.Secrets[0].Source
	for name, got := range map[string]*string{
		"redis": server.Environment["REDIS_PASSWORD_FILE"], "relay": relays.Environment["STATUSRELAY_REDIS_PASSWORD_FILE"],
	} {
		if got == nil || *got != want {
			t.Errorf("%s: reads its password elsewhere than in %s", name, want)
		}
	}
	if got := *relays.Environment["STATUSRELAY_REDIS_USERNAME"]; got != storetest.ShippedUser {
		t.Errorf("the relay logs in as %q", got)
	}
	if !strings.Contains(server.Tmpfs[0], *server.Environment["REDIS_RUN"]+":mode=0700,uid=999") {
		t.Errorf("Redis' users would be written to %s, and %q is writable", *server.Environment["REDIS_RUN"], server.Tmpfs)
	}

	addr := start(t, server, "right")
	deadline := time.Now().Add(20 * time.Second)
	for err := healthy(t, server, addr, "right"); err != nil; err = healthy(t, server, addr, "right") {
		if time.Now().After(deadline) {
			t.Fatalf("Redis does not get healthy: %v", err)
		}
	}
	if healthy(t, server, addr, "wrong") == nil {
		t.Error("healthy with a wrong password")
	}
	if answer, err := storetest.Do(addr, "PING"); err == nil {
		t.Errorf("who has not logged in is answered %s", answer)
	}
}

// accept loads a program's configuration as the container would.
func accept[T any](t *testing.T, defaults T, service types.ServiceConfig) T {
	t.Helper()
	known := settings.Markdown(defaults)
	for name, value := range service.Environment {
		if !strings.Contains(known, "`"+name+"`") {
			t.Errorf("%s: no setting reads %s", service.Name, name)
		}
		if strings.HasPrefix(*value, "/run/secrets/") { // as the container has it
			mounted := t.TempDir() + "/secret"
			if err := os.WriteFile(mounted, []byte("secret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			value = &mounted
		}
		t.Setenv(name, *value)
	}
	cfg, err := settings.Bind(&cobra.Command{}, defaults).Load()
	if err != nil {
		t.Errorf("%s: %v", service.Name, err)
	}
	return cfg
}

func TestProgramsAcceptTheirConfigurationInCompose(t *testing.T) {
	p := compose(t)
	r, n := accept(t, relay.Defaults(), p.Services["relay"]), accept(t, notifier.Defaults(), p.Services["notifier"])
	for name, path := range map[string]string{"relay": r.Policy, "notifier": n.Policy} {
		volume := p.Services[name].Volumes[0]
		if volume.Target != path {
			t.Errorf("%s: reads its policy at %s, which is mounted at %s", name, path, volume.Target)
		}
		if _, err := policy.Parse(read(t, volume.Source)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range r.Redis.Addrs {
		host, _, _ := strings.Cut(address, ":")
		if _, ok := p.Services[host]; !ok {
			t.Errorf("relay: Redis at %s is no service here", address)
		}
	}
	bus := emulator(t)
	if got, want := [3]string{r.ServiceBus.Topic, n.ServiceBus.Topic, r.Subscription}, [3]string{bus.topic, bus.topic, bus.subscription}; got != want {
		t.Errorf("topic of the relay, of the notifier, and subscription: got %q, the emulator has %q", got, want)
	}
	if got := r.ServiceBus.ConnectionString.Reveal(); !strings.Contains(got, "Endpoint=sb://servicebus;") || !strings.Contains(got, "UseDevelopmentEmulator=true") {
		t.Errorf("connection string is not the emulator's: %s", got)
	}
}

func TestPortsOfTheImagesAreThoseOfThePrograms(t *testing.T) {
	content := string(read(t, dockerfile))
	for _, want := range []string{
		"EXPOSE " + port(relay.Defaults().Listen) + " " + port(relay.Defaults().PrivateListen) + "\nENTRYPOINT [\"/relay\"]",
		"EXPOSE " + port(notifier.Defaults().Listen) + " " + port(notifier.Defaults().PrivateListen) + "\nENTRYPOINT [\"/notifier\"]",
		"STATUSRELAY_PRIVATE_LISTEN=:" + port(relay.Defaults().PrivateListen) + "\n",
		"STATUSRELAY_PRIVATE_LISTEN=:" + port(notifier.Defaults().PrivateListen) + "\n",
	} {
		if !strings.Contains(content, want) {
			t.Errorf("no %q", want)
		}
	}
}

func port(address string) string { return address[strings.LastIndex(address, ":")+1:] }

type bus struct{ topic, subscription string }

// emulator reads the topology strictly and holds it against the emulator's
// limits, which are not the cloud's.
func emulator(t *testing.T) bus {
	t.Helper()
	type properties struct {
		DeadLetteringOnMessageExpiration bool
		DefaultMessageTimeToLive         string
		ForwardDeadLetteredMessagesTo    string
		ForwardTo                        string
		LockDuration                     string
		MaxDeliveryCount                 int
		RequiresSession                  bool
	}
	var config struct {
		UserConfig struct {
			Namespaces []struct {
				Name   string
				Queues []struct{}
				Topics []struct {
					Name       string
					Properties struct {
						DefaultMessageTimeToLive   string
						RequiresDuplicateDetection bool
					}
					Subscriptions []struct {
						Name       string
						Properties properties
						Rules      []struct{}
					}
				}
			}
			Logging struct{ Type string }
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(read(t, topology)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		t.Fatal(err)
	}
	namespaces := config.UserConfig.Namespaces
	if len(namespaces) != 1 || namespaces[0].Name != "sbemulatorns" || namespaces[0].Queues == nil {
		t.Fatal("the emulator wants one namespace, sbemulatorns, with Queues and Topics")
	}
	if len(namespaces[0].Topics) != 1 || len(namespaces[0].Topics[0].Subscriptions) != 1 {
		t.Fatal("want one topic with one subscription")
	}
	topic := namespaces[0].Topics[0]
	subscription := topic.Subscriptions[0]
	// ISO 8601; the limits are 1 hour to live and 5 minutes of lock.
	if !slices.Contains([]string{"PT1H", "PT30M"}, topic.Properties.DefaultMessageTimeToLive) || subscription.Properties.DefaultMessageTimeToLive != topic.Properties.DefaultMessageTimeToLive {
		t.Error("time to live: the emulator's longest is PT1H, on topic and subscription")
	}
	if !regexp.MustCompile(`^PT([1-5]M|[1-5]?[0-9]S)$`).MatchString(subscription.Properties.LockDuration) {
		t.Errorf("lock duration %s: the longest is PT5M", subscription.Properties.LockDuration)
	}
	if n := subscription.Properties.MaxDeliveryCount; n < 1 || n > 10 {
		t.Errorf("max delivery count %d: the emulator takes 1 to 10", n)
	}
	if subscription.Properties.RequiresSession {
		t.Error("the relay's receiver takes no sessions")
	}
	return bus{topic.Name, subscription.Name}
}

func TestEmulatorTopologyIsWithinItsLimits(t *testing.T) { emulator(t) }
