package bake

import (
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
)

const (
	tagBake    = manifest.TagBake
	tagExpires = manifest.TagExpires
	tagJournal = manifest.TagJournal
	tagHash    = manifest.TagHash
	tagRecipe  = manifest.TagRecipe
	tagSource  = manifest.TagSource
	tagRole    = manifest.TagRole
	tagState   = manifest.TagState
	stateDone  = manifest.StateDone
)

// tags are what everything of a bake carries: the recipe's, and those by
// which gc finds it.
func (b *bake) tags(more ...map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, b.recipe.Tags)
	for _, m := range more {
		maps.Copy(out, m)
	}
	out[tagBake], out[tagRecipe] = b.id, b.recipe.Name
	out[tagJournal], out[tagExpires] = b.store.Location(), b.expires().UTC().Format(time.RFC3339)
	return out
}

// imageTags are those of the image and its snapshots, until it is proved.
func (b *bake) imageTags() map[string]string {
	f := b.store.known()
	out := b.tags(f.ImageTags)
	out[tagHash], out[tagSource], out[tagState] = f.Hash, f.SourceImage, manifest.StateBuilding
	if _, ok := out["Name"]; !ok {
		out["Name"] = f.ImageName
	}
	return out
}

func ec2Tags(m map[string]string) []types.Tag {
	out := make([]types.Tag, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(m[k])})
	}
	return out
}

func tagSpec(kind types.ResourceType, m map[string]string) types.TagSpecification {
	return types.TagSpecification{ResourceType: kind, Tags: ec2Tags(m)}
}

func byTag(key, value string) []types.Filter {
	return []types.Filter{{Name: aws.String("tag:" + key), Values: []string{value}}}
}
