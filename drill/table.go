package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime/multipart"
	"net/textproto"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/lecafe/lecafe/agent/report"
)

// ErrTable says that a table of cases is wrong, or that what it names is not
// what it says.
var ErrTable = errors.New("not a table of cases")

// Table is cases with where their payloads come from. A case's file is
// SOURCE:PATH in a source's package, or PATH from the table's own directory;
// several become the parts of one MIME message.
type Table struct {
	Distro  string // what the expectations hold for; "" for any
	Sources []Source
	Cases   []Case

	dir string
}

// Source is a package of Debian's, pinned.
type Source struct {
	Name    string // in a case's files
	Suite   string // bookworm
	Package string
	Version string
	SHA256  string // of the .deb
	Under   string // directory in the package that paths count from
}

// ReadTable reads a table of cases. Payloads are there after Fetch.
func ReadTable(file string) (*Table, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the table of cases: %w", err)
	}
	t, err := parseTable(b)
	if err != nil {
		return nil, err
	}
	t.dir = filepath.Dir(file)
	return t, nil
}

func parseTable(b []byte) (*Table, error) {
	var doc struct {
		Distro  string `yaml:"distro"`
		Sources []struct {
			Name    string `yaml:"name"`
			Suite   string `yaml:"suite"`
			Package string `yaml:"package"`
			Version string `yaml:"version"`
			SHA256  string `yaml:"sha256"`
			Under   string `yaml:"under"`
		} `yaml:"sources"`
		Cases []struct {
			Name      string   `yaml:"name"`
			About     string   `yaml:"about"`
			Why       string   `yaml:"why"`       // for who reads the table
			Corrected string   `yaml:"corrected"` // likewise
			UserData  string   `yaml:"user_data"`
			Files     []string `yaml:"files"`
			Encode    string   `yaml:"encode"`
			Fault     string   `yaml:"fault"`
			Waits     bool     `yaml:"waits"`
			Alone     bool     `yaml:"alone"`
			Expect    struct {
				Verdict report.Verdict   `yaml:"verdict"`
				Stage   report.StageName `yaml:"stage"`
				Code    report.Code      `yaml:"code"`
				File    string           `yaml:"file"`
				Line    int              `yaml:"line"`
				Among   bool             `yaml:"among"`
				Channel string           `yaml:"channel"`
			} `yaml:"expect"`
		} `yaml:"cases"`
	}
	if err := yaml.UnmarshalWithOptions(b, &doc, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTable, err)
	}
	t := &Table{Distro: doc.Distro}
	for _, s := range doc.Sources {
		t.Sources = append(t.Sources, Source(s))
	}
	for _, c := range doc.Cases {
		if c.Name == "" || (c.UserData == "") == (len(c.Files) == 0) {
			return nil, fmt.Errorf("%w: case %q needs a name, and either user_data or files", ErrTable, c.Name)
		}
		t.Cases = append(t.Cases, Case{Name: c.Name, About: c.About, UserData: c.UserData, Files: c.Files, Encode: c.Encode, Fault: c.Fault, Waits: c.Waits, Alone: c.Alone, Expect: Expectation(c.Expect)})
	}
	return t, nil
}

// Has says whether a case is of this table.
func (t *Table) Has(c Case) bool {
	return slices.ContainsFunc(t.Cases, func(o Case) bool { return o.Name == c.Name })
}

// Fetch reads the payloads that the cases name. Packages are kept in cache
// under their SHA-256 and come from mirror where they are not there.
func (t *Table) Fetch(ctx context.Context, cache, mirror string) error {
	archives := map[string]map[string][]byte{}
	for _, s := range t.Sources {
		deb, err := s.fetch(ctx, cache, mirror)
		if err != nil {
			return err
		}
		if archives[s.Name], err = unpack(ctx, deb, s.Under); err != nil {
			return fmt.Errorf("unpack %s: %w", s.Package, err)
		}
	}
	for i := range t.Cases {
		c := &t.Cases[i]
		var parts []part
		for _, name := range c.Files {
			source, file, ok := strings.Cut(name, ":")
			var data []byte
			var found bool
			if ok {
				data, found = archives[source][path.Clean(file)]
			} else if b, err := os.ReadFile(filepath.Join(t.dir, name)); err == nil {
				file, data, found = name, b, true
			}
			if !found {
				return fmt.Errorf("%w: case %s: there is no file %s", ErrTable, c.Name, name)
			}
			parts = append(parts, part{path.Base(file), data})
		}
		var err error
		switch len(parts) {
		case 0:
		case 1:
			c.data = parts[0].data
		default:
			if c.data, err = message(parts); err != nil {
				return fmt.Errorf("case %s: %w", c.Name, err)
			}
		}
	}
	return nil
}

type part struct {
	name string
	data []byte
}

// message joins parts into one MIME message, as cloud-init's own tools do.
func message(parts []part) ([]byte, error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary("drill-d8a6f0c1"); err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n\n", w.Boundary())
	for _, p := range parts {
		kind := "text/x-shellscript"
		if bytes.HasPrefix(p.data, []byte("#cloud-config")) {
			kind = "text/cloud-config"
		}
		body, err := w.CreatePart(textproto.MIMEHeader{
			"Content-Type":        {kind + `; charset="utf-8"`},
			"Content-Disposition": {fmt.Sprintf("attachment; filename=%q", p.name)},
		})
		if err != nil {
			return nil, err
		}
		if _, err := body.Write(p.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	// multipart ends lines in CR LF; user data is text of Unix.
	return bytes.ReplaceAll(b.Bytes(), []byte("\r\n"), []byte("\n")), nil
}
