package storetest

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ShippedUser is the relay's user in deploy/redis/users.acl, ShippedNotifier the
// notifier's, and ShippedBridge that of a notifier that bridges.
const (
	ShippedUser     = "relay"
	ShippedNotifier = "notifier"
	ShippedBridge   = "bridge"
)

// shippedUsers is that file, with a hash in place of those that nobody has the
// password to.
func shippedUsers(t testing.TB, password string) string {
	t.Helper()
	path := filepath.Join("deploy", "redis", "users.acl")
	var text []byte
	err := os.ErrNotExist
	for up := "."; err != nil && len(up) < 20; up = filepath.Join(up, "..") { // tests run in their package's folder
		text, err = os.ReadFile(filepath.Join(up, path))
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	hash := sha256.Sum256([]byte(password))
	none := "#" + strings.Repeat("0", 2*len(hash))
	if strings.Count(string(text), none) != 3 {
		t.Fatalf("%s: want a hash of no password for each of three users", path)
	}
	return strings.ReplaceAll(string(text), none, "#"+hex.EncodeToString(hash[:]))
}

// StartRedisAsShipped starts a redis-server with the users that are shipped, whose
// password that is, and the one of Do. Commented says to have it include the file,
// comments and all; else it is given as an ACL file.
func StartRedisAsShipped(t testing.TB, password string, commented bool) *Redis {
	t.Helper()
	text, arguments := shippedUsers(t, password), append(Administrator(), "--include")
	if !commented { // users are then in that file only
		users := []string{"user " + strings.Join(Administrator()[1:], " ")}
		for line := range strings.SplitSeq(text, "\n") {
			if strings.HasPrefix(line, "user ") {
				users = append(users, line)
			}
		}
		text, arguments = strings.Join(users, "\n"), []string{"--aclfile"}
	}
	path := filepath.Join(t.TempDir(), "users.acl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return StartRedis(t, append(arguments, path)...)
}

// ShippedCommands are the rules about commands of the relay's user.
func ShippedCommands(t testing.TB) []string {
	t.Helper()
	return CommandsOf(t, ShippedUser)
}

// CommandsOf are the rules about commands of a user that is shipped.
func CommandsOf(t testing.TB, user string) (rules []string) {
	t.Helper()
	for line := range strings.SplitSeq(shippedUsers(t, ""), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "user" || words[1] != user {
			continue
		}
		for _, w := range words[2:] {
			if strings.HasPrefix(w, "+") || strings.HasPrefix(w, "-") {
				rules = append(rules, w)
			}
		}
	}
	return rules
}
