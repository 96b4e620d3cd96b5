// Package bake turns a recipe into an AMI. It owns the phases of a bake, its
// journal in S3 and the undoing of what it made. It refuses to bake a recipe
// that does not check, to make an image public that does not say so, and to
// leave anything behind that gc could not find.
//
// Every call that changes something in the cloud is in the journal before it
// is made; everything that is made carries the bake's ID as a tag from its
// creation. So another process can go on with a bake (Resume) or remove what
// is left of it (GC), whenever the first one died.
package bake
