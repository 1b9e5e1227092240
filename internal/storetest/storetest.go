// Package storetest holds the contract of redisstore as tests that run against
// any server that speaks Redis' protocol, and what such tests need: a real
// redis-server (StartRedis), a proxy that goes wrong on demand (StartProxy), and
// commands without a client library (Do).
//
// It promises that what Run passes holds on that server: versions that only
// grow, concurrent writers that agree, records that nobody can poison for ever,
// and a subscription whose gaps are reported.
//
// Use:
//
//	func TestContractOnRedis(t *testing.T) {
//		storetest.Run(t, func(t testing.TB) storetest.Harness {
//			server := storetest.StartRedis(t)
//			return storetest.Harness{Addr: server.Addr, Real: server}
//		})
//	}
package storetest

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// Harness is one Redis, empty and for one test alone.
type Harness struct {
	// Addr is its host:port.
	Addr string
	// Real is the same server when it is a real redis-server, nil when it is a
	// fake. Fakes cannot be frozen, made replicas or run out of memory, do not
	// know CLIENT KILL and have no cluster: Run's tests of those faults
	// exist for the real one only.
	Real *Redis
	// Pass lets keys grow older on a fake, whose keys do not by themselves; nil on
	// a real server.
	Pass func(time.Duration)
}

// Run tests the contract. It calls start for each test.
func Run(t *testing.T, start func(testing.TB) Harness) {
	run := func(name string, test func(*testing.T, Harness)) {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
	run("PutIsLatest", putIsLatest)
	run("VersionGrowsWithEveryVisibleChange", versionGrows)
	run("VersionOutgrowsAClockThatWentBack", versionOutgrowsClock)
	run("PositionAloneIsRememberedWithoutAVersion", positionAlone)
	run("DuplicatesChangeNothing", duplicatesChangeNothing)
	run("LostRecordIsWrittenAgain", lostRecordIsWrittenAgain)
	run("OneInstancePerBatchIsOneWrite", batchIsOneWrite)
	run("ConcurrentWritersAgree", concurrentWritersAgree)
	run("LostAnswerIsHarmless", lostAnswerIsHarmless)
	run("ForgottenScriptIsSentAgain", forgottenScript)
	run("RecordsLiveAsLongAsTheirState", recordsLive)
	run("AnyIDIsSafe", anyIDIsSafe)
	run("CorruptRecordCountsAsAbsent", corruptRecord)
	run("WrongTypeHurtsOneInstanceOnly", wrongType)
	run("AbsentServerIsUnavailable", absentServer)

	run("IntervalIsTheMeanBetweenVersions", intervalIsTheMean)
	run("NewestChangeIsListedFirst", newestChangeFirst)
	run("TiesAreAllListed", tiesAreAllListed)
	run("ThousandsArePagedWithoutLossOrRepetition", thousandsArePaged)
	run("WhoLeavesAnIndexIsGone", whoLeavesAnIndexIsGone)
	run("IndexesLiveAsLongAsTheirRecords", indexesLive)
	run("LostIndexIsRebuilt", lostIndexIsRebuilt)
	run("PrefixIsNoPattern", prefixIsNoPattern)
	run("GarbageInAnIndexHurtsNobody", garbageInAnIndex)
	run("CorrectionsArePublished", correctionsPublish)
	run("RedeliveryIndexesWhatACrashLeft", redeliveryIndexes)
	run("LostIndexAnswerIsHarmless", lostIndexAnswer)
	run("ForgottenIndexScriptIsSentAgain", indexScriptForgotten)
	run("ScoresNeverSink", scoresNeverSink)
	run("AnyLabelIsSafe", anyLabelIsSafe)
	run("ExpiredLeaveTheirIndexes", expiredLeaveTheirIndexes)
	run("OnlyTheExpiredAreSwept", onlyTheExpiredAreSwept)
	run("WhoEntersAgainIsNotSwept", whoEntersAgainIsNotSwept)
	run("OneOfAllSweeps", oneOfAllSweeps)
	run("TicketsAreTakenOnce", ticketsAreTakenOnce)
	run("W9SocketsAreCountedTogether", socketsAreCountedTogether)
	run("W9SocketsTakeAllPlacesOrNone", socketsTakeAllPlacesOrNone)
	run("W9DeadReplicasSocketsEnd", deadReplicasSocketsEnd)
	run("StoppedReplicasSocketsEndAtOnce", stoppedReplicasSocketsEndAtOnce)
	run("AnyCallerIsSafe", anyCallerIsSafe)
	run("GarbageInSocketsHurtsNobody", garbageInSocketsHurtsNobody)
	run("ForgottenSocketsScriptIsSentAgain", forgottenSocketsScript)
	run("GoneEntrantsAreNotCounted", goneEntrantsAreNotCounted)

	run("AnnouncedAreInterested", announcedAreInterested)
	run("InterestEnds", interestEnds)
	run("LongestInterestCounts", longestInterestCounts)
	run("NewInterestIsHeard", newInterestIsHeard)
	run("InterestIsBounded", interestIsBounded)
	run("ThousandsAreAnnounced", thousandsAreAnnounced)
	run("AnyWantedIDIsSafe", anyWantedIDIsSafe)
	run("GarbageInInterestHurtsNobody", garbageInInterestHurtsNobody)
	run("ForgottenInterestScriptsAreSentAgain", forgottenInterestScripts)
	run("LostInterestIsRead", lostInterestIsRead)
	run("OneHolderOfALease", oneHolderOfALease)
	run("LeasesEnd", leasesEnd)
	run("ContendersOfALease", contendersOfALease)
	run("GarbageInALeaseHurtsNobody", garbageInALease)

	run("EventIsClaimedOnceByAll", eventIsClaimedOnce)
	run("GarbageInClaimsHurtsNobody", garbageInClaims)
	run("StampsGrow", stampsGrow)
	run("StampedRunsFollowTheStatus", stampedRuns)
	run("StampsGoOnFromTheRecord", stampsGoOnFromTheRecord)
	run("GarbageInStampsHurtsNobody", garbageInStamps)
	run("ForgottenIngestScriptsAreSentAgain", forgottenIngestScripts)
	run("LostStampAnswerIsHarmless", lostStampAnswer)

	run("FollowerGetsWhatIsPut", followerGetsPuts)
	run("UnsubscribedGetsNothing", unsubscribedGetsNothing)
	run("LastWishWins", lastWishWins)
	run("ThousandsOfChannelsComeBack", thousandsComeBack)
	run("CutConnectionIsAGap", cutConnection)
	run("DeafSubscriptionIsNoticed", deafSubscription)
	run("UnreadableMessageIsRead", unreadableMessage)
	run("SubscribeWaitsForRedis", subscribeWaits)
	run("TouchTellsOfEveryChange", touchTellsOfEveryChange)
	run("GapsCoverLists", gapsCoverLists)

	if start := start(t); start.Real == nil {
		return
	}
	run("RestartedServerIsAGap", restartedServer)
	run("KilledConnectionIsAGap", killedConnection)
	run("FrozenServerIsNotReady", frozenServer)
	run("ReplicaIsUnavailable", replicaIsUnavailable)
	run("SweepsThatFailAreTriedAgain", sweepsThatFail)
	run("W9SocketsWithoutRedis", socketsWithoutRedis)
	run("SocketsUnderTooFewRightsStay", socketsUnderTooFewRights)
	run("SocketsOfAReadOnlyServerAreToldLater", socketsOfAReadOnlyServer)
	run("RestartedServerIsAnnouncedTo", restartedServerIsAnnouncedTo)
	run("FullServerIsUnavailable", fullServer)
	run("PasswordIsUnavailable", passwordIsUnavailable)
	run("OrdinaryCommandsSuffice", ordinaryCommandsSuffice)
	run("UnwritableIndexIsUnavailable", unwritableIndex)
}

// open returns a store of its own on the Redis at addr.
func open(t testing.TB, addr string, change ...func(*redisstore.Options)) *redisstore.Store {
	t.Helper()
	o := redisstore.Options{Addrs: []string{addr}}
	for _, f := range change {
		f(&o)
	}
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var order = status.Key{Hub: "orders", InstanceID: "order-1"}

// redisName is the name of an instance's hash and channel, as the package
// comment of redisstore promises it for an id that needs no escape.
func redisName(k status.Key) string { return "statusrelay:{" + k.Hub + "/" + k.InstanceID + "}" }

const generation = int64(1_700_000_000_000)

// progress says how far an instance is.
func progress(k status.Key, sequence int64, percent int) *status.Update {
	g := generation
	return &status.Update{
		Hub: k.Hub, InstanceID: k.InstanceID, Kind: status.KindProgress, Generation: &g, Sequence: &sequence,
		CustomStatus: json.RawMessage(`{"percent":` + strconv.Itoa(percent) + `}`),
	}
}

// lifecycle says which state it is in.
func lifecycle(k status.Key, sequence int64, s status.RuntimeStatus) *status.Update {
	u := progress(k, sequence, 0)
	u.Kind, u.RuntimeStatus, u.CustomStatus = status.KindLifecycle, s, nil
	return u
}

// put puts updates that must all be accepted.
func put(t testing.TB, s *redisstore.Store, updates ...*status.Update) []status.Outcome {
	t.Helper()
	outcomes, errs := s.Put(t.Context(), updates)
	if len(outcomes) != len(updates) || len(errs) != len(updates) {
		t.Fatalf("got %d outcomes and %d errors for %d updates", len(outcomes), len(errs), len(updates))
	}
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return outcomes
}

// latest returns the record of an instance, nil if there is none.
func latest(t testing.TB, s *redisstore.Store, k status.Key) *status.Record {
	t.Helper()
	records, err := s.Latest(t.Context(), []status.Key{k})
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 1 {
		t.Fatalf("got %d records for one key", len(records))
	}
	return records[0]
}

// do sends one command without the client under test.
func do(t testing.TB, addr string, words ...string) string {
	t.Helper()
	answer, err := Do(addr, words...)
	if err != nil {
		t.Fatalf("%s: %v", words[0], err)
	}
	return answer
}

// text is the comparable form of a record without its version.
func text(t testing.TB, r *status.Record) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	every := time.NewTicker(2 * time.Millisecond)
	defer every.Stop()
	for !ok() {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		}
	}
}
