package recipe

import (
	"errors"
	"strings"
	"text/template"
)

// Naming is what the templates of image.name, image.description and
// image.tags see.
type Naming struct {
	Name      string // the recipe's name
	Time      string // UTC, as 20260102-150405
	GitCommit string // first 12 digits; "none" outside a git work tree
	Hash      string // first 12 digits of the content hash
}

// TimeLayout is the form of Naming.Time.
const TimeLayout = "20060102-150405"

// RenderName returns the image's name.
func (im Image) RenderName(n Naming) (string, error) { return render(im.Name, n) }

// RenderDescription returns the image's description.
func (im Image) RenderDescription(n Naming) (string, error) { return render(im.Description, n) }

// RenderTags returns the image's own tags.
func (im Image) RenderTags(n Naming) (map[string]string, error) {
	out := make(map[string]string, len(im.Tags))
	for k, v := range im.Tags {
		text, err := render(v, n)
		if err != nil {
			return nil, err
		}
		out[k] = text
	}
	return out, nil
}

func render(text string, n Naming) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := t.Execute(&b, n); err != nil {
		return "", err
	}
	return b.String(), nil
}

// templateError is the part of a template's error that is about the text.
func templateError(err error) string {
	var exec template.ExecError
	if errors.As(err, &exec) {
		err = exec.Err
	}
	text := err.Error()
	for _, cut := range []string{`template: :1: `, `template: :1:`, "template: "} {
		if rest, ok := strings.CutPrefix(text, cut); ok {
			text = rest
			break
		}
	}
	if _, rest, ok := strings.Cut(text, ": executing \"\" at "); ok {
		text = rest
	}
	return text
}
