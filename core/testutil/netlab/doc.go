// Package netlab tests real agents on several machines: each is a process in a network namespace of its own, on one bridge. It has
// tests alone, which need root; `make test-net` runs them, and without APIARY_TEST_NET they are skipped. They start and end what they
// need themselves, and make namespaces in a mount namespace that ends with them.
//
// The public cases of membership, supervision and several queens, and where each is tested with real processes:
//
//	T01 cluster forms             TestServing, in both orders; TestMembership with two queens
//	T02 machine dies              TestServing, under requests; TestMembership, its agent alone
//	T03 freeze                    TestServing, under requests; TestMembership
//	T07 one-way loss              TestServing, through the gateway; TestMembership, what becomes of the hive
//	T08 30 % packet loss          TestServing, of requests; TestMembership, of gossip at all machines
//	T09 40 hives                  TestTraffic, in `make bench` alone; core/testutil/beatbench for a queen with 10,000 workers
//	T10 key rotation              TestServing; core/gossip TestKeyRotation
//	T12 two agents, one node id   TestMembership, "one node id twice"; core/gossip TestTwoAgentsWithOneNodeID
//	T13 worker SIGKILL            TestServing
//	T14 crash loop                TestCrashLoop, in real time; core/registry TestCrashLoop, in fake time
//	T16 hive SIGKILL              TestHiveKilledWhileStreaming; core/cli TestHiveRestartDuringStream
//	T19 out of memory             TestOutOfMemory; core/hive TestOutOfMemoryIsReported
//	T20 unkillable                core/hive TestUnkillable; core/process TestKillGivesUpOnTheUnkillable
//	T21 orphan lease              TestOrphans; workers/sdk TestOrphanLease, in fake time
//	T22 log flood                 TestLogFlood; workers/echo TestLogFloodIsRotated
//	T24 long load                 TestLongLoad
//	T68 gossip fuzz               TestHostileGossip; core/gossip TestHostileTraffic
//	T70 queen SIGKILL             queens_linux_test.go
//	T72 drain                     TestDrainOfQueen
//	T73 rolling upgrade           TestRollingUpgrade
//
// Tests that mostly wait run beside each other.
package netlab
