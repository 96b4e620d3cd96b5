package bake

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/lecafe/lecafe/bake/recipe"
)

// hashVersion changes when the same recipe makes another image than before
// for reasons that are in no file.
const hashVersion = "lecafe.content/v1"

// contentHash is over everything that makes an image what it is: the recipe
// but for what does not reach the image, the files it names, the agent, the
// builder program (cleaning rules included), and the source image.
func contentHash(r *recipe.Recipe, p Programs, sourceImage string) (string, error) {
	n := *r
	n.Staging, n.MaxAge, n.Promote = recipe.Staging{}, 0, nil
	normal, err := json.Marshal(n)
	if err != nil {
		return "", fmt.Errorf("hash recipe: %w", err)
	}
	_, files, err := planOf(r, "")
	if err != nil {
		return "", err
	}
	files["agent"], files["builder"] = p.Agent, p.Builder
	if r.Builder.CABundle != "" {
		files["ca"] = r.Resolve(r.Builder.CABundle)
	}
	if k := r.Canary; k != nil {
		if k.UserData != "" {
			files["canary"] = r.Resolve(k.UserData)
		}
		for i, t := range k.Test {
			if t.Script != "" {
				files[fmt.Sprintf("test/%d", i)] = r.Resolve(t.Script)
			}
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n", hashVersion, sourceImage, normal)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f, err := sumFile(files[name])
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", name, err)
		}
		fmt.Fprintf(h, "%s %s\n", name, f.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))[:40], nil
}
