package sinks_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
)

// TestKeptOnlyWhatTheDiskHas pins that a report the disk would not take is not
// called kept until the disk has it, or it has arrived.
func TestKeptOnlyWhatTheDiskHas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	o, err := sinks.OpenOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	lost, sent := sample(report.Failure), sample(report.Failure)
	for _, r := range []*report.Report{lost, sent} {
		if err := o.Add(r, []string{sinks.NameS3}, false); err == nil {
			t.Error("no error although there is no directory")
		}
		if o.Kept(r.ID) {
			t.Error("called kept although nothing was written")
		}
	}
	if got := o.Waiting(sinks.NameS3); len(got) != 2 {
		t.Errorf("%d are sent from memory, want 2", len(got))
	}
	_ = o.Done(sent.ID, sinks.NameS3) // the directory cannot be synced
	if !o.Kept(sent.ID) {
		t.Error("not called kept although it has arrived")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if !o.Kept(lost.ID) {
		t.Error("not written although it can be")
	}
	again, err := sinks.OpenOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Waiting(sinks.NameS3); len(got) != 1 || got[0] != lost.ID {
		t.Errorf("after a restart %v wait, want %s", got, lost.ID)
	}
}
