// Package manifest owns what the CLI and a builder instance say to each other:
// the manifest the CLI keeps renewing in S3, and the progress and result the
// builder PUTs back. Both sides use these types; neither talks any other way.
package manifest

import (
	"time"

	"github.com/lecafe/lecafe/agent/report"
)

// Schema is the value of Manifest.Schema.
const Schema = "lecafe.manifest/v1"

// Manifest is one JSON object behind the presigned URL in the builder's user
// data. The CLI rewrites it, at the same key, with newly signed URLs long
// before those in it expire; the builder reads it again before each use.
type Manifest struct {
	Schema   string    `json:"schema"`
	BakeID   string    `json:"bake_id"`
	Serial   int       `json:"serial"`   // grows with each rewrite
	Deadline time.Time `json:"deadline"` // the builder shuts itself down after it
	Self     string    `json:"self"`     // presigned GET of the manifest's next version

	RenewSeconds int `json:"renew_seconds"` // the builder reads Self again at least so often

	Builder File `json:"builder"` // lecafe-builder
	Agent   File `json:"agent"`   // lecafe-agent
	Bundle  File `json:"bundle"`  // tar.gz: plan.json and the recipe's files

	Progress string `json:"progress"` // presigned PUT of Progress
	Result   string `json:"result"`   // presigned PUT of Result
}

// File is fetched from URL and refused unless its SHA-256 (hex) is the given.
type File struct {
	URL    string `json:"url"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Progress is what the builder is doing; each PUT replaces the last.
type Progress struct {
	BakeID     string    `json:"bake_id"`
	InstanceID string    `json:"instance_id"`
	Serial     int       `json:"serial"`
	Step       int       `json:"step"` // from 1; 0 before the first
	Steps      int       `json:"steps"`
	Name       string    `json:"name"`
	Phase      string    `json:"phase"` // provision, agent, clean, inspect
	At         time.Time `json:"at"`
	Tail       []string  `json:"tail,omitempty"` // last lines of output, redacted
}

// Result is the builder's final word. On success the builder waits to be
// stopped; its last shutdown hook then cleans what shutdown writes.
type Result struct {
	BakeID string        `json:"bake_id"`
	Steps  []Step        `json:"steps"`
	Report report.Report `json:"report"`               // Kind build
	Used   int64         `json:"used_bytes,omitempty"` // of the root file system
}

// Step is one provision step's outcome.
type Step struct {
	Number   int      `json:"number"` // from 1
	Name     string   `json:"name"`
	Seconds  float64  `json:"seconds"`
	ExitCode int      `json:"exit_code"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`
	Command  string   `json:"command,omitempty"`
	Output   []string `json:"output,omitempty"` // last lines, redacted; on failure
}

// Tags of what a bake makes, set at creation.
const (
	TagBake        = "lecafe:bake"         // the bake's ID
	TagExpires     = "lecafe:expires"      // RFC 3339: gc may take it after that
	TagJournal     = "lecafe:journal"      // s3://bucket/key
	TagHash        = "lecafe:content-hash" // images: what they were made from
	TagRecipe      = "lecafe:recipe"       // the recipe's name
	TagSource      = "lecafe:source-image" // images: the source AMI's ID
	TagBootSeconds = "lecafe:boot-seconds" // images: RunInstances to report, of the canary
	TagRole        = "lecafe:role"         // builder, canary
	TagState       = "lecafe:state"        // images and snapshots: StateBuilding, then StateDone or StateFailed
)

// Values of TagState. gc takes only what is not done.
const (
	StateBuilding = "building"
	StateDone     = "done"
	StateFailed   = "failed" // kept for study
)
