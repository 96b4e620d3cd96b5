package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Capture freezes a machine's disk as imageID. The upper layer of a stopped
// machine becomes the image's layer as it is, and the machine goes on with an
// empty one above it; that of a running machine is copied, with whatever is
// half written at that moment, as CreateImage with NoReboot does.
func (d *Driver) Capture(ctx context.Context, instanceID, imageID string) (int64, error) {
	i, err := d.get(instanceID)
	if err != nil {
		return 0, err
	}
	layer := filepath.Join(d.dir, "images", imageID)
	if _, err := os.Lstat(layer); err == nil {
		return 0, fmt.Errorf("capture %s as %s: the image exists", instanceID, imageID)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.gone {
		return 0, fmt.Errorf("capture %s: %w", instanceID, ErrNotFound)
	}
	upper := filepath.Join(i.dir, "upper")
	if i.running {
		// cp keeps overlayfs's whiteouts (devices 0/0) and trusted.* attributes.
		out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", upper, layer).CombinedOutput()
		if err != nil {
			return 0, errors.Join(fmt.Errorf("capture %s as %s: %w: %s", instanceID, imageID, err, out), os.RemoveAll(layer))
		}
	} else {
		if err := os.Rename(upper, layer); err != nil {
			return 0, fmt.Errorf("capture %s as %s: %w", instanceID, imageID, err)
		}
		if err := os.Mkdir(upper, 0o755); err != nil {
			return 0, fmt.Errorf("capture %s as %s: %w", instanceID, imageID, err)
		}
	}
	bytes, err := size(layer)
	if err != nil {
		return 0, fmt.Errorf("capture %s as %s: %w", instanceID, imageID, err)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	base := i.img
	img := &image{layers: append([]string{layer}, base.layers...), own: layer, apt: base.apt, parent: base}
	base.users++
	d.images[imageID] = img
	if !i.running {
		// What the machine had written is below it now.
		img.users++
		base.users--
		i.img = img
	}
	return bytes, nil
}

// DeleteImage forgets an image. Its layer is deleted once no machine and no
// other image stands on it.
func (d *Driver) DeleteImage(imageID string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	img := d.images[imageID]
	if img == nil {
		return fmt.Errorf("delete image %s: %w", imageID, ErrNotFound)
	}
	delete(d.images, imageID)
	img.gone = true
	img.users++
	return d.release(img)
}

// release drops one use of img. The caller holds d.mu.
func (d *Driver) release(img *image) error {
	img.users--
	if !img.gone || img.users > 0 || img.own == "" {
		return nil
	}
	if err := os.RemoveAll(img.own); err != nil {
		return fmt.Errorf("delete layer: %w", err)
	}
	return d.release(img.parent)
}

// Images lists the IDs of the images known, sorted.
func (d *Driver) Images() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []string
	for id := range d.images {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// size is the sum of the regular files' sizes below dir.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type().IsRegular() {
			fi, err := e.Info()
			if err != nil {
				return err
			}
			n += fi.Size()
		}
		return nil
	})
	return n, err
}

// Layers lists the directories that an image is made of, the uppermost first,
// as overlayfs takes them. It is for tests that look into an image before it
// boots.
func (d *Driver) Layers(imageID string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	img := d.images[imageID]
	if img == nil {
		return nil, fmt.Errorf("layers of %s: %w", imageID, ErrNotFound)
	}
	return slices.Clone(img.layers), nil
}
