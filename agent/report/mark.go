package report

import (
	"fmt"
	"slices"
	"strings"
)

// Mark is the S3 key of an empty object by which an instance whose boot is not
// judged yet says how far it is:
//
//	PREFIX/SENDER/progress/STAGE
//	lecafe-reports/AROAEXAMPLE:i-0abc/progress/cloud-final
//
// It lies below the sender's own reports, so that the same IAM policy confines
// it, and a listing of those has it without another call. The time is the
// object's LastModified. A sender has one; where it may not delete, the latest
// counts, and none does once there is a report.
type Mark struct {
	Prefix string // without trailing slash, may be empty or have slashes
	Sender string // ROLEID:i-...
	Stage  StageName
}

// MarkDir is the directory of a sender's marks.
const MarkDir = "progress"

// MarkOf returns the mark of a stage below prefix.
func MarkOf(prefix, sender string, stage StageName) Mark {
	return Mark{Prefix: strings.Trim(prefix, "/"), Sender: sender, Stage: stage}
}

func (m Mark) String() string {
	name := m.Sender + "/" + MarkDir + "/" + string(m.Stage)
	if m.Prefix == "" {
		return name
	}
	return m.Prefix + "/" + name
}

// InstanceID returns the part of the sender behind the colon.
func (m Mark) InstanceID() string { return Key{Sender: m.Sender}.InstanceID() }

// ParseMark reads a key that Mark.String wrote, of a stage this program knows.
// Every other key is ErrKey.
func ParseMark(key string) (Mark, error) {
	parts := strings.Split(key, "/")
	n := len(parts) - 3
	if n < 0 || parts[n+1] != MarkDir || !senderForm().MatchString(parts[n]) || !slices.Contains(StageNames(), StageName(parts[n+2])) {
		return Mark{}, fmt.Errorf("%w: %q", ErrKey, key)
	}
	return Mark{Prefix: strings.Join(parts[:n], "/"), Sender: parts[n], Stage: StageName(parts[n+2])}, nil
}

// StageNames lists the stages in the order in which a boot passes them.
func StageNames() []StageName {
	return []StageName{StageIdentity, StageUserData, StageSystem, StageCloudInitLocal, StageCloudInitNetwork, StageCloudConfig, StageCloudFinal, StageConfig, StageOrders, StageApplication}
}
