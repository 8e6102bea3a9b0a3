package queen

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestRoomForRecords: a queen writes no more than others take, and keeps no more than it can read again.
func TestRoomForRecords(t *testing.T) {
	home := t.TempDir()
	b, err := openBook(home, "q1")
	if err != nil {
		t.Fatal(err)
	}
	record := func(n int, value string) contract.Record {
		return contract.Record{Kind: contract.RecordKey, Key: fmt.Sprintf("k%d", n), Value: json.RawMessage(value), Deleted: value == "", Time: time.Now().UnixMilli(), Count: int64(n), Node: "q2"}
	}
	var list []contract.Record
	for n := range maxOwnRecords {
		list = append(list, record(n, ""))
	}
	if _, refused, err := b.merge(list); refused != nil || err != nil {
		t.Fatal(refused, err)
	}
	if e := fault.As(b.addKey(contract.APIKey{ID: "mine", Name: "anna"})); e == nil || e.Code != "too_many_records" || e.Kind != fault.Exhausted {
		t.Errorf("one record too many: %v", e)
	}
	if list, ever := b.keys(); len(list) != 0 || ever {
		t.Errorf("keys %v", list)
	}
	if b, err = openBook(home+"/other", "q1"); err != nil {
		t.Fatal(err)
	}
	b.home = "" // the file is written once, at the end: that is what takes long here
	wide := `["` + strings.Repeat("<>&", 300_000) + `"` + strings.Repeat(",1", 30_000) + `]`
	for n := range 100 {
		_, refused, err := b.merge([]contract.Record{record(n, wide)})
		if err != nil {
			t.Fatal(err)
		}
		if refused != nil {
			break
		}
		if n == 99 {
			t.Error("100 records of 1 MiB are taken")
		}
	}
	if e := fault.As(b.apply([]contract.Deployment{echoDeployment("chat", 1, 1)})); e == nil || e.Code != "too_many_records" {
		t.Errorf("a record more: %v", e)
	}
	if _, refused, _ := b.merge([]contract.Record{{Kind: contract.RecordKey, Key: "k0", Deleted: true, Time: time.Now().UnixMilli() + 1000, Node: "q2"}}); refused != nil {
		t.Errorf("what makes room is refused: %v", refused)
	}
	b.home = home + "/other"
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(b.home, stateFolder, sharedFile)); err != nil || st.Size() > int64(maxShared) {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
	again, err := openBook(b.home, "q1")
	if err != nil || again.digest() != b.digest() {
		t.Errorf("read again: %v", err)
	}
}
