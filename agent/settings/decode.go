package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

// UserDataSource names the user data in problems.
const UserDataSource = "user-data"

// Source is one file of settings, or the settings in the user data. FirstLine
// is the line of the whole payload that Data starts on, 0 meaning 1.
type Source struct {
	Name      string
	Data      []byte
	FirstLine int
}

// Decode reads sources in order over each other and over nothing, checks the
// outcome and returns it without defaults. What a later source does not set
// keeps its value, lists are replaced, the severity map gains keys. The error
// is strictyaml.Problems, all of them at once; the settings returned with it
// hold whatever could be read.
func Decode(sources ...Source) (Settings, error) {
	var (
		s        Settings
		problems strictyaml.Problems
		docs     []*strictyaml.Document
	)
	for _, src := range sources {
		doc, err := strictyaml.Decode(src.Name, src.Data, max(src.FirstLine, 1), &s)
		var ps strictyaml.Problems
		if errors.As(err, &ps) {
			problems = append(problems, ps...)
		}
		docs = append(docs, doc)
	}
	// A value that did not decode is not complained about twice.
	for _, p := range Validate(s, docs...) {
		if !slices.ContainsFunc(problems, func(q strictyaml.Problem) bool { return q.Field == p.Field }) {
			problems = append(problems, p)
		}
	}
	if s.Canary {
		s.Orders.Queue, s.Orders.SealTo = "", ""
		s.Report.SQS, s.Report.Webhook, s.Report.LifecycleHook = SQSSink{}, WebhookSink{}, LifecycleHook{}
	}
	return s, problems.Err()
}

// Files reads the settings files below root: Path, then DropInGlob in order of
// name. Files that do not exist are no error.
func Files(root string) ([]Source, error) {
	dropIns, err := filepath.Glob(filepath.Join(root, DropInGlob))
	if err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	slices.Sort(dropIns)
	var out []Source
	for _, path := range append([]string{filepath.Join(root, Path)}, dropIns...) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read settings: %w; make the file readable for root", err)
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return nil, fmt.Errorf("name settings file: %w", err)
		}
		out = append(out, Source{Name: "/" + rel, Data: data})
	}
	return out, nil
}
