// Package secrets finds credentials in files with gitleaks' rules. It is kept
// apart from bake/cleanup because of its size: the builder program and the
// CLI link it, the agent never does. It refuses to return what it found:
// matches carry the rule's name and the line alone.
package secrets

import (
	"fmt"

	"github.com/rs/zerolog"
	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/logging"

	"github.com/lecafe/lecafe/bake/cleanup"
)

// Scanner implements cleanup.Scanner.
type Scanner struct{ detector *detect.Detector }

var _ cleanup.Scanner = (*Scanner)(nil)

// New returns a Scanner with the rules that gitleaks ships.
func New() (*Scanner, error) {
	logging.Logger = zerolog.Nop() // it would log each match
	d, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		return nil, fmt.Errorf("load gitleaks' rules: %w", err)
	}
	return &Scanner{d}, nil
}

// Scan returns a match for each credential in content, in the order found.
func (s *Scanner) Scan(path string, content []byte) []cleanup.Match {
	var out []cleanup.Match
	//lint:ignore SA1019 its successor, sources.Fragment, is for v9 and not taken by Detect yet
	for _, f := range s.detector.Detect(detect.Fragment{Raw: string(content), FilePath: path}) {
		out = append(out, cleanup.Match{Rule: f.RuleID, Line: f.StartLine + 1})
	}
	return out
}
