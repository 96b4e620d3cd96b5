package systemd

import (
	"bytes"
	"log/slog"
	"testing"
)

func TestLinesHaveTheJournalsPriorities(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(withPriorities(&out)).With("unit", "x").WithGroup("g")
	log.Error("it\nfailed", "code", 1)
	log.Warn("it may")
	log.Info("it goes")
	log.Debug("not told")
	want := `<3>level=ERROR msg="it\nfailed" unit=x g.code=1
<4>level=WARN msg="it may" unit=x
<6>level=INFO msg="it goes" unit=x
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestElsewhereLinesArePlain(t *testing.T) {
	var out bytes.Buffer
	Log(&out).Error("it failed")
	if out.String() != "level=ERROR msg=\"it failed\"\n" {
		t.Errorf("got %q", out.String())
	}
}
