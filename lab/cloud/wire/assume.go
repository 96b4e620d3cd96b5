package wire

import (
	"fmt"
	"time"
)

// Assume makes temporary credentials of role for a session named by whoever
// assumes it, valid for d. The name may be an instance's: only InstanceID tells
// them apart.
func (v *Vault) Assume(role, session string, d time.Duration) Credentials {
	return v.add("ASIA", d, Caller{
		UserID: v.RoleID(role) + ":" + session, Role: role,
		ARN: fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", Account, role, session),
	})
}
