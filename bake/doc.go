// Package bake turns a recipe into an AMI. It owns the phases of a bake, its
// journal in S3 and the undoing of what it made. It refuses to bake a recipe
// that does not check, to make an image public that does not say so, and to
// leave anything behind that gc could not find.
//
// What a process that dies leaves, and who removes it. Each line is tested by
// killing the process before and after its calls:
//
//	died while            left                                   resume     gc
//	writing the journal   nothing, or the journal                goes on    removes it
//	staging               journal, some objects                  uploads    removes them
//	launching             journal, objects, group, builder       adopts     terminates, deletes
//	imaging               those, an image in the making          adopts     deregisters it too
//	canary                those, a canary                        a new one  terminates it
//	settling              an image that is committed             finishes   finishes
//	cleaning up           a done image and some of the rest      finishes   removes the rest
//
// Every call that makes something in the cloud is in the journal before it is
// made; everything that is made carries the bake's ID as a tag from its
// creation. Calls that stop, share or remove what is there are not waited for
// by a writing of their own: what is to be cleaned up is the same on both
// sides of them, and repeating them does no harm. So another process can go on with a bake (Resume) or remove what
// is left of it (GC), whenever the first one died.
package bake
