package orders

// QueueAPI lets tests stand between the forwarder and the SDK.
type QueueAPI = queueAPI
