package orders

// QueueAPI lets tests stand between the forwarder and the SDK.
type QueueAPI = queueAPI

// UploadAPI lets tests take what is sealed.
type UploadAPI = uploadAPI

// Record is an order as the spool keeps it.
func Record(o *Order) []byte { return o.appendRecord(nil) }
