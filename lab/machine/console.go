package machine

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

// consoleMax bounds a console's file. EC2 keeps the last 64 KiB; the rest is
// for whoever debugs the lab.
const consoleMax = 1 << 20

// console appends a machine's output to a file that is cut to its later half
// when it grows past consoleMax.
type console struct {
	mu   sync.Mutex
	f    *os.File
	size int64
	last []byte // the last line written that is not empty
}

func openConsole(path string) (*console, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open console: %w", err)
	}
	return &console{f: f, size: fi.Size()}, nil
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range bytes.Lines(b) {
		if l := bytes.TrimSpace(line); len(l) > 0 {
			c.last = bytes.Clone(l)
		}
	}
	if c.size+int64(len(b)) > consoleMax {
		keep := make([]byte, min(c.size, consoleMax/2))
		n, err := c.f.ReadAt(keep, c.size-int64(len(keep)))
		if err != nil {
			return 0, fmt.Errorf("cut console: %w", err)
		}
		if err := c.f.Truncate(0); err != nil {
			return 0, fmt.Errorf("cut console: %w", err)
		}
		if _, err := c.f.Write(keep[:n]); err != nil {
			return 0, fmt.Errorf("cut console: %w", err)
		}
		c.size = int64(n)
	}
	n, err := c.f.Write(b)
	c.size += int64(n)
	return n, err
}

func (c *console) lastLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.last)
}

func (c *console) Close() { c.f.Close() }
