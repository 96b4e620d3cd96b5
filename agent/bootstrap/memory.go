package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// Memory is what has to survive a restart of the agent or the instance: whose
// bootstrap it is, how far it got, and whether it was judged.
type Memory struct {
	InstanceID string           `json:"instance_id"`
	BootID     string           `json:"boot_id"`
	Stage      report.StageName `json:"stage,omitempty"` // running when last written
	File       string           `json:"file,omitempty"`
	Command    string           `json:"command,omitempty"`
	Ended      bool             `json:"ended"` // cloud-init had done its work
	Judged     bool             `json:"judged"`
	Verdict    report.Verdict   `json:"verdict,omitempty"`
	ReportID   string           `json:"report_id,omitempty"`
}

const memoryFile = "bootstrap.json"

// LoadMemory reads what was remembered in dir. What cannot be read was not
// remembered: the boot is then judged, again rather than never.
func LoadMemory(dir string) (Memory, error) {
	var m Memory
	b, err := os.ReadFile(filepath.Join(dir, memoryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read bootstrap memory: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return Memory{}, fmt.Errorf("read bootstrap memory: %w", err)
	}
	return m, nil
}

// Save writes m to dir durably.
func (m Memory) Save(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("remember bootstrap: %w", err)
	}
	return atomicfile.WriteFile(filepath.Join(dir, memoryFile), b, 0o600)
}

// Interrupted returns m if it is of an earlier boot of the same instance whose
// bootstrap had begun and not ended.
func (m Memory) Interrupted(instanceID, bootID string) *Memory {
	if m.InstanceID != instanceID || m.BootID == "" || m.BootID == bootID || m.Judged || m.Ended {
		return nil
	}
	return &m
}

// Done says that the instance's bootstrap was judged.
func (m Memory) Done(instanceID string) bool { return m.Judged && m.InstanceID == instanceID }
