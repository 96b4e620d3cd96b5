package orders

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lecafe/lecafe/internal/atomicfile"
)

// Parked is an order that the queue refused for good, as it is kept on disk.
type Parked struct {
	ParkedAt time.Time `json:"parked_at"`
	Queue    string    `json:"queue"`
	Code     string    `json:"code"`             // SQS's
	Message  string    `json:"message"`          // SQS's
	Order    *Order    `json:"order,omitempty"`  // nil where the record could not be read
	Record   []byte    `json:"record,omitempty"` // then
}

// Parking is a directory with one file for each parked order.
type Parking struct{ Dir string }

// Park writes an order down, durably, under its ID.
func (p Parking) Park(name string, e Parked) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("park order: %w", err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("park order: %w", err)
	}
	if err := atomicfile.WriteFile(filepath.Join(p.Dir, name+".json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("park order: %w", err)
	}
	return nil
}

// Names lists the parked orders.
func (p Parking) Names() ([]string, error) {
	entries, err := os.ReadDir(p.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list parked orders: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

// Read returns one parked order.
func (p Parking) Read(name string) (*Parked, error) {
	b, err := os.ReadFile(filepath.Join(p.Dir, name+".json"))
	if err != nil {
		return nil, fmt.Errorf("read parked order: %w", err)
	}
	var e Parked
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("read parked order %s: %w", name, err)
	}
	return &e, nil
}

// Remove forgets one parked order.
func (p Parking) Remove(name string) error {
	if err := os.Remove(filepath.Join(p.Dir, name+".json")); err != nil {
		return fmt.Errorf("remove parked order: %w", err)
	}
	return atomicfile.SyncDir(p.Dir)
}
